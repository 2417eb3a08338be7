"""A rewards.yaml from disk: folders located, mistakes explained in one line.

Relative folders, interpreters and files are resolved against the folder of the configuration file: `rewards
serve` works from anywhere, and under `ray job submit --working-dir .`. A name without such a folder is a hub
model.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from reward_services.config import Reward, ServicesConfig
from reward_services.errors import ConfigInvalid
from reward_services.http.keys import ENVIRONMENT, NO_KEYS


def load_config(path: str | Path) -> ServicesConfig:
    """Read and check a configuration file.

    Raises:
        ConfigInvalid: it cannot be read or a value is wrong; one line that says where and what to do.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return _with_folders(checked(content, str(path)), path.resolve().parent)


def checked(content: Any, source: str) -> ServicesConfig:
    """A configuration from what a file held; raises `ConfigInvalid` that names the `source`."""
    if not (isinstance(content, dict) and content and content.get("rewards", True)):
        raise ConfigInvalid(f"{source} names no reward; write `rewards: {{clip: {{scorer: clip}}}}`")
    try:
        return ServicesConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigInvalid(f"{source}: {_explained(error)}") from error


def _with_folders(config: ServicesConfig, folder: Path) -> ServicesConfig:
    rewards = {name: _with_folder(reward, folder) for name, reward in config.rewards.items()}
    http = config.http and config.http.model_copy(update={"keys": _keys_located(config.http.keys, folder)})
    return config.model_copy(update={"rewards": rewards, "http": http})


def _keys_located(source: str, folder: Path) -> str:
    is_path = source != NO_KEYS and not source.startswith(ENVIRONMENT)
    # Not resolved: Kubernetes swaps a mounted secret by changing a link on the way.
    return str(folder / source) if is_path else source


def _with_folder(reward: Reward, folder: Path) -> Reward:
    found = {name: _located(getattr(reward.options, name), folder) for name in reward.options.folders}
    changed: dict[str, Any] = {"options": reward.options.model_copy(update=found)}
    if reward.observe.reference is not None:
        reference = str((folder / reward.observe.reference).resolve())
        changed["observe"] = reward.observe.model_copy(update={"reference": reference})
    changed["runtime_env"] = _env_located(reward.runtime_env, folder)
    return reward.model_copy(update=changed)


def _env_located(env: dict[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """With an absolute path for an interpreter that is given from the file's folder."""
    python = str((env or {}).get("py_executable", ""))
    if env is None or not python.startswith("."):
        return env
    # Not resolved: the link is what makes the environment.
    path = Path(os.path.abspath(folder / python))
    if not path.exists():
        raise ConfigInvalid(f"py_executable {path} does not exist; correct it, or make its environment first")
    return {**env, "py_executable": str(path)}


def _located(named: str | dict[str, str], folder: Path) -> str | dict[str, str]:
    """An absolute path for a folder or file, existing or meant as one; anything else is a name on the hub."""
    if isinstance(named, dict):
        return {name: str(_located(one, folder)) for name, one in named.items()}
    is_meant = named.startswith(".") or named.endswith(".py") or named.count("/") > 1
    return str((folder / named).resolve()) if is_meant or (folder / named).exists() else named


def _explained(error: ValidationError) -> str:
    """One thing that is wrong, in one line; first of all an unknown key, with the nearest one that exists."""
    found = error.errors(include_url=False, include_input=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    # pydantic puts the scorer's name into the path of a reward: rewards, <name>, <scorer>, key.
    where = ".".join(str(part) for place, part in enumerate(first["loc"]) if place != 2)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(
            str(first["loc"][-1]), sorted(_keys(ServicesConfig)), n=1, cutoff=0.5
        )
        return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
    if first["type"] == "union_tag_not_found":
        return f"{where} names no scorer; add `scorer: NAME`"
    if first["type"] == "union_tag_invalid":
        return f"{where}: no scorer {first['ctx']['tag']!r}; there are {first['ctx']['expected_tags']}"
    return f"{where or 'the file'}: {first['msg']}"


def _keys(model: type[BaseModel]) -> set[str]:
    inner = [found for field in model.model_fields.values() for found in _models(field.annotation)]
    return set(model.model_fields).union(*(_keys(found) for found in inner))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
