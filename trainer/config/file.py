"""Reads a typed configuration from YAML and `a.b=c` overrides; each wrong key gets a line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Config = TypeVar("Config", bound=BaseModel)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of settings in which a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ConfigError(ValueError):
    """A configuration that cannot be used; each line of the message names a key and says what to do."""


def load(
    model: type[Config],
    path: Path,
    overrides: Sequence[str] = (),
    parts: Callable[[str], list[str]] = lambda dotted: dotted.split("."),
) -> Config:
    """The configuration in a YAML file with overrides applied in their order; `parts` takes their keys apart.

    Raises ConfigError.
    """
    values = _read(path)
    for override in overrides:
        _apply(values, override, parts)
    return checked(model, values, path)


def checked(model: type[Config], values: Mapping[str, Any], place: Path | str) -> Config:
    """Settings of these values. Raises ConfigError, whose lines begin with the place that they are from."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = (_explain(model, details["loc"], details) for details in error.errors())
        raise ConfigError("\n".join(f"{place}: {line}" for line in lines)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write lines like `seed: 0`")
    return values


def _apply(values: dict[str, Any], override: str, parts: Callable[[str], list[str]]) -> None:
    """Set one dotted key in place, making the sections on the way."""
    dotted, equals, text = override.partition("=")
    *sections, key = parts(dotted.strip())
    if not equals or not all([*sections, key]):
        raise ConfigError(f"--set {override}: write it as key=value, for example --set sampling.steps=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value; quote it") from None
    if isinstance(value, dict) and any(":" in str(key) and value[key] is None for key in value):
        raise ConfigError(f"--set {override}: write a space after each colon, and quotes around the whole")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[key] = value


def _explain(model: type[BaseModel], location: tuple[int | str, ...], details: Any) -> str:
    dotted = ".".join(map(str, location))
    match details["type"]:
        case "extra_forbidden":
            return f'unknown key "{dotted}"; {_nearest(model, dotted)}'
        case "missing":
            return f'"{dotted}" is missing; add it'
        case "value_error":
            reason = str(details["ctx"]["error"])
            return f"{dotted}: {reason}" if dotted else reason
        case _:
            wanted = details["msg"].replace("Input should", "should")
            return f"{dotted}: {wanted} (got {details['input']!r:.80})"


def _nearest(model: type[BaseModel], dotted: str) -> str:
    """What the writer of an unknown key probably meant: a sibling, else a key of any section."""
    section, _, name = dotted.rpartition(".")
    keys = list(_keys(model))
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    for candidates in (siblings, keys):
        by_name = {key.rpartition(".")[2]: key for key in candidates}
        if close := get_close_matches(name, by_name, n=1, cutoff=0.6):
            return f'did you mean "{by_name[close[0]]}"?'
    return f"known keys here: {', '.join(siblings) or 'none'}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of every setting, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
