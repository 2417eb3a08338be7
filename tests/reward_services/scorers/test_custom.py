"""A reward of one's own: the README's example as written, what may be named, each mistake in one line."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from reward_services import ConfigInvalid, RewardNotReady, RewardUnavailable, Score
from reward_services.config_file import load_config
from reward_services.deployments import connect, deploy
from reward_services.observed import Observed
from reward_services.pipeline import Pipeline
from reward_services.scorers import SCORERS
from reward_services.scorers.scorer import Scorer
from tests.processes import replica_pids

README = Path(__file__).parents[3] / "reward_services" / "README.md"
RED, BLUE = (np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3)) for colour in ((200, 0, 0), (0, 0, 100)))

Write = Callable[..., Path]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The configuration of the README's example, its code beside it."""
    section = README.read_text(encoding="utf-8").split("## A reward of your own")[1].split("\n## ")[0]
    code, settings = re.findall(r"```(?:python|yaml)\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "warmth.py").write_text(code, encoding="utf-8")
    (tmp_path / "rewards.yaml").write_text(settings, encoding="utf-8")
    return tmp_path / "rewards.yaml"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of code, by its name."""

    def written(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return written


def custom(path: Path, name: str = "score", **arguments: Any) -> Scorer[Any, Any]:
    return SCORERS["custom"](path=str(path), name=name, arguments=arguments)


def said(scores: list[Score]) -> list[Any]:
    return [score.value if score.error is None else score.error.detail for score in scores]


def test_a_function_scores_a_batch_in_order(write: Write) -> None:
    path = write("def score(images, prompts): return [i.mean() + len(p) for i, p in zip(images, prompts)]")
    assert said(custom(path).score([RED, RED[:4], BLUE], ["", "ab", ""])) == pytest.approx(
        [200 / 3, 200 / 3 + 2, 100 / 3]
    )


def test_a_function_may_write_to_its_pictures(write: Write) -> None:
    path = write("def score(images, prompts):\n    images[0][:] = 1\n    return [images[0].mean()]")
    assert not RED.flags.writeable, "as those that come out of Ray's object store"
    assert said(custom(path).score([RED], [""])) == [1.0]


def test_a_class_is_made_once_and_a_scorer_stays_what_it_is(write: Write) -> None:
    path = write("""
from reward_services.scorers.jpeg import JpegScorer

class Constant:
    made = 0
    def __init__(self, value):
        Constant.made += 1
        self.value = value
    def __call__(self, images, prompts):
        return [self.value + Constant.made] * len(images)

class Small(JpegScorer):
    score_range = (None, 0.0)
""")
    constant = custom(path, "Constant", value=3)
    assert [said(constant.score([RED], [""])) for _ in range(2)] == [[4.0]] * 2
    small = custom(path, "Small", direction="compressible")
    assert small.describe("small", max_items=1).range == (None, 0.0)
    assert said(small.score([RED], [""]))[0] < 0


def test_the_modules_of_a_package_import_each_other(write: Write) -> None:
    write("from .net import score", "own/__init__.py")
    write("def score(images, prompts): return [7] * len(images)", "own/net.py")
    package = write("", "own/empty.txt").parent
    assert said(custom(package).score([RED], [""])) == [7.0]


def test_the_revision_follows_code_name_arguments_and_what_the_code_says(write: Write) -> None:
    code = "def score(images, prompts, n=0): return [n] * len(images)\nother = score\n"
    path = write(code)
    revisions = [custom(path).revision, custom(path, n=1).revision, custom(path, "other").revision]
    assert custom(write(code, "renamed.py")).revision == revisions[0]
    revisions += [custom(write(code + more)).revision for more in ("# v2", "score.revision = 'weights 2'")]
    package = write(code, "own/__init__.py").parent
    revisions.append(custom(package).revision)
    assert custom(package).revision == revisions[-1], "what Python caches is none of it"
    write("", "own/weights.bin")
    revisions.append(custom(package).revision)
    assert len(set(revisions)) == len(revisions)


def test_the_revision_that_a_class_names_counts(write: Write) -> None:
    path = write("""
from pathlib import Path
class Mine:
    def __init__(self): self.revision = Path(__file__ + ".weights").read_text()
    def __call__(self, images, prompts): return [0] * len(images)
""")
    revisions = set()
    for weights in "ab":
        write(weights, "mine.py.weights")
        revisions.add(custom(path, "Mine").revision)
    assert len(revisions) == 2


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        (None, "score", "{} does not exist where the reward runs; correct `path`"),
        (
            "import no_such_module",
            "score",
            "{} cannot be imported: ModuleNotFoundError: No module named 'no_s",
        ),
        (
            "def score(:",
            "score",
            "{} cannot be imported: SyntaxError: invalid syntax (mine.py, line 1); correct",
        ),
        ("def score(images, prompts): ...", "scores", "{} has no 'scores'; did you mean 'score'?"),
        ("", "score", "{} has no 'score'; correct `name`: a function's or a class's"),
        (
            "class score:\n    def __init__(self, n): raise OSError('no weights\\nat all')",
            "score",
            "score of {} refuses its arguments: OSError: no weights; correct `arguments`, or the code",
        ),
        ("class score:\n    def __init__(self): ...", "score", "unexpected keyword argument 'n'"),
        ("class score:\n    def __init__(self, n): ...", "score", "is not a callable object"),
        (
            "def score(images, prompts): ...",
            "score",
            "arguments: TypeError: got an unexpected keyword argument 'n'",
        ),
        (
            "def score(images, n): ...",
            "score",
            "refuses its arguments: TypeError: multiple values for argument 'n'",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line(write: Write, code: str | None, name: str, says: str) -> None:
    path = write(code or "")
    if code is None:
        path.unlink()
    with pytest.raises(ConfigInvalid) as caught:
        custom(path, name, n=1)
    assert says.format(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_python_is_one_line(write: Write) -> None:
    with pytest.raises(ConfigInvalid, match=r"is no Python file; name a \.py file"):
        custom(write("", "mine.txt"))


def test_a_revision_that_cannot_be_set_is_one_line(write: Write) -> None:
    code = "from reward_services.scorers.custom import FunctionScorer\nclass Mine(FunctionScorer):\n"
    path = write(code + "    def __init__(self): ...\n    revision = property(lambda self: 'mine')")
    with pytest.raises(ConfigInvalid, match=r"the `revision` of Mine of .* cannot be set; make it an attr"):
        custom(path, "Mine")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("[1, 2, 3]", "ValueError: scores of shape (3,) for 1 images; return one per image, in order"),
        ("[[1]]", "ValueError: scores of shape (1, 1) for 1 images"),
        ("0.5", "ValueError: scores of shape () for 1 images"),
        ("[float('nan')]", "the model answered nan"),
        ("[None]", "the model answered nan"),
        ("['high']", "ValueError: could not convert string to float: 'high'"),
        ("{}[prompts[0]]", "KeyError: 'a'"),
    ],
)
def test_what_is_no_score_is_a_failure_that_says_why(write: Write, returned: str, says: str) -> None:
    (detail,) = said(custom(write(f"def score(images, prompts): return {returned}")).score([RED], ["a"]))
    assert detail.startswith(says)


def test_a_picture_that_cannot_be_scored_fails_alone(write: Write) -> None:
    """One score too few for a batch: which one is missing shows when the pictures come alone."""
    path = write("def score(images, prompts): return [len(p) for p in prompts if p != 'bad']")
    first, bad, last = said(custom(path).score([RED] * 3, ["a", "bad", "abc"]))
    assert (first, last) == (1.0, 3.0)
    assert "scores of shape (0,) for 1 images" in bad


def test_what_may_succeed_later_is_told_of_the_whole_batch(write: Write) -> None:
    path = write("""
from reward_services import RewardUnavailable
def score(images, prompts):
    raise RewardUnavailable("the endpoint is busy")
""")
    with pytest.raises(RewardUnavailable, match="the endpoint is busy"):
        custom(path).score([RED] * 2, [""] * 2)


def test_the_golden_sample_is_scored_at_the_start(write: Write) -> None:
    scorer = custom(write("def score(images, prompts): return [{}[p] for p in prompts]"))
    with pytest.raises(
        Exception, match="the golden sample cannot be scored: KeyError: 'a photo of a red cube"
    ):
        Pipeline(scorer, Observed("mine", lambda *_, **__: None))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=2, object_store_memory=200_000_000, **options)
    yield
    serve.shutdown()
    ray.shutdown()


# Ray leaves sockets and files of its processes to the garbage collector.
@pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")
def test_the_example_is_served_and_follows_its_file(
    cluster: None, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, on a real cluster; again after the code has changed, and when it is broken."""

    def served() -> tuple[list[Any], str, set[int]]:
        config = load_config(example).model_copy(update={"http": None})
        deploy(config)
        scores = asyncio.run(connect().score([RED, BLUE], [""] * 2, rewards=["warmth"], deadline_s=30))
        (revision,) = {str(score.revision) for score in scores["warmth"]}
        return said(scores["warmth"]), revision, replica_pids("warmth")

    monkeypatch.chdir("/")
    first = served()
    assert first[0] == [100.0, -50.0]
    assert served() == first, "left alone while nothing has changed"
    code = example.with_name("warmth.py")
    code.write_text(code.read_text(encoding="utf-8").replace("return [", "return [1 + "), encoding="utf-8")
    scores, revision, pids = served()
    assert scores == [101.0, -49.0]
    assert revision != first[1]
    assert not pids & first[2]
    code.write_text("import no_such_module", encoding="utf-8")
    with pytest.raises(
        RewardNotReady, match=r"reward warmth never became ready: .*warmth\.py cannot be imported"
    ):
        served()
