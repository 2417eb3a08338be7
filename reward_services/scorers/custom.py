"""A reward of one's own: a function or a class in a Python file that the configuration names.

Code is named by the configuration alone, which is the operator's; a request names nothing but rewards.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reward_services.diagnosis import first_line
from reward_services.errors import ConfigInvalid, RewardError
from reward_services.fingerprint import of_contents
from reward_services.images import to_array
from reward_services.schema import Score
from reward_services.scorers.scorer import Pixels, Scorer, finite_score

ScoreFunction = Callable[[list[NDArray[np.uint8]], list[str]], Sequence[float]]
"""Images, (H, W, 3) each and perhaps of several sizes, and their prompts in; one number per image out."""


class FunctionScorer(Scorer[tuple[NDArray[np.uint8], str], float]):
    """A function as a scorer. An image that it raises for fails alone; by a `RewardError` the batch fails."""

    faults: ClassVar[tuple[type[Exception], ...]] = (Exception,)

    def __init__(self, function: ScoreFunction) -> None:
        self._function = function

    def prepare(self, image: Pixels, prompt: str) -> tuple[NDArray[np.uint8], str]:
        """A copy that the function may write to: pictures that came through Ray are shared."""
        return to_array(image).copy(), prompt

    def run(self, items: Sequence[tuple[NDArray[np.uint8], str]]) -> list[float]:
        """The function's scores; raises ValueError unless there is one for each item."""
        images, prompts = zip(*items, strict=True)
        scores = np.asarray(self._function(list(images), list(prompts)), dtype=np.float64)
        if scores.shape != (len(items),):
            raise ValueError(
                f"scores of shape {scores.shape} for {len(items)} images; return one per image, in order"
            )
        return [float(score) for score in scores]

    def finish(self, raw: float) -> Score:
        """The number as a score; NaN is a failure."""
        return finite_score(raw)


def custom_scorer(*, path: str, name: str, arguments: Mapping[str, Any]) -> Scorer[Any, Any]:
    """What `name` in a file or package makes of the arguments, as a scorer.

    A class is called with them; it is a `Scorer`, or makes functions of images and prompts. A function takes
    them after images and prompts. The revision is a digest of the file or package, the name, the arguments,
    and the attribute `revision` where there is one.

    Raises:
        ConfigInvalid: there is no such file or name, or they do not take the arguments.
    """
    named = _named(_executed(Path(path)), name, path)
    try:
        if isinstance(named, type):
            made = named(**arguments)
            if not isinstance(made, Scorer):
                signature(made).bind([], [])
        else:
            signature(named).bind([], [], **arguments)
            made = partial(named, **arguments)
    except RewardError:
        raise
    except Exception as error:  # other people's code: there is no list of what it raises
        raise ConfigInvalid(
            f"{name} of {path} refuses its arguments: {_said(error)}; correct `arguments`, or the code"
        ) from error
    own = getattr(made if isinstance(named, type) else named, "revision", "")
    scorer = made if isinstance(made, Scorer) else FunctionScorer(made)
    made_of = f"{of_contents(Path(path))}/{name}/{json.dumps(arguments, sort_keys=True)}/{own}"
    try:
        scorer.revision = f"sha256:{hashlib.sha256(made_of.encode()).hexdigest()}"
    except AttributeError as error:  # a property
        raise ConfigInvalid(
            f"the `revision` of {name} of {path} cannot be set; make it an attribute of the object"
        ) from error
    return scorer


def _executed(path: Path) -> ModuleType:
    """The module of a file or package, under a name that hides no other module."""
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        raise ConfigInvalid(
            f"{file.absolute()} does not exist where the reward runs; correct `path`, or put it there"
        )
    inner = [str(path)] if path.is_dir() else None
    spec = spec_from_file_location(f"custom_{path.stem}", file, submodule_search_locations=inner)
    if spec is None or spec.loader is None:
        raise ConfigInvalid(f"{path} is no Python file; name a .py file or a package's folder as `path`")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # other people's code
        raise ConfigInvalid(
            f"{path} cannot be imported: {_said(error)}; correct it, or install what it imports"
        ) from error
    return module


def _named(module: ModuleType, name: str, path: str) -> Any:
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "correct `name`: a function's or a class's"
        raise ConfigInvalid(f"{path} has no {name!r}; {hint}")
    return getattr(module, name)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(str(error))}"
