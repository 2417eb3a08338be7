"""Rubrics: what a judge is asked about a picture, in files of their own, and how a question is put.

A question is a chat of two messages. The first is the rubric's instruction. The second holds the picture, the
prompt that it was made for, and the question of one aspect, as three content parts. The prompt is data: it
stands alone in its part as a JSON string, which it cannot end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from reward_services.errors import ConfigInvalid

FOLDER = Path(__file__).parent.parent / "rubrics"
"""The rubrics that can be called by name."""
_MARKUP = ("<", "[")
_NAME = r"^[a-z][a-z0-9_]*$"

Part = dict[str, Any]
Message = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Aspect(_Section):
    """One question about a picture, and its share of the value."""

    question: str = Field(min_length=1)
    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a picture that was made for a prompt, and what the answers to it are worth."""

    instruction: str
    prompt: str
    text: str
    levels: Mapping[str, float]

    def messages(self, picture: Part, reserved: Iterable[str] = ()) -> list[Message]:
        """The chat that asks it; `picture` is the image's part, `reserved` are the model's control tokens."""
        prompt = _text(quoted(self.prompt, reserved))
        return [
            {"role": "system", "content": [_text(self.instruction)]},
            {"role": "user", "content": [picture, prompt, _text(f"\n{self.text}")]},
        ]


class Rubric(_Section):
    """What a judge is asked. The value of a picture is the weighted mean of what its aspects are worth."""

    name: str = Field(pattern=_NAME)
    version: PositiveInt
    instruction: str = Field(min_length=1)
    levels: dict[str, FiniteFloat] = Field(min_length=2)
    """What may be answered, one token each, and what that is worth."""
    aspects: dict[Annotated[str, Field(pattern=_NAME)], Aspect] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """Changes with everything that a judge is asked."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return min(self.levels.values()), max(self.levels.values())

    def questions(self, prompt: str) -> list[Question]:
        """What is asked about a picture made for the prompt, one question per aspect."""
        asked = (aspect.question for aspect in self.aspects.values())
        return [Question(self.instruction, prompt, text, self.levels) for text in asked]

    def mean(self, parts: Mapping[str, float]) -> float:
        """The value of a picture, from what each of its aspects is worth."""
        total = sum(aspect.weight for aspect in self.aspects.values())
        return sum(aspect.weight * parts[name] for name, aspect in self.aspects.items()) / total


def load_rubric(name: str) -> Rubric:
    """A rubric by its name here, or from a YAML file by its path.

    Raises:
        ConfigInvalid: there is none, or it is no rubric; one line that says where and what to do.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Rubric.model_validate(content)
    except OSError as error:
        known = ", ".join(sorted(found.stem for found in FOLDER.glob("*.yaml")))
        raise ConfigInvalid(f"no rubric {name!r}; there are {known}, or give the path of a file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"rubric {path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigInvalid(f"rubric {path}: {where}: {first['msg']}") from error


def quoted(prompt: str, reserved: Iterable[str] = ()) -> str:
    """The prompt as a JSON string in which no `reserved` word stands: its first letter is escaped.

    How most control tokens begin is always escaped, `<` and `[`. Nothing is lost by it.
    """
    text = json.dumps(prompt, ensure_ascii=False)
    for word in (*_MARKUP, *reserved):
        text = text.replace(word, f"\\u{ord(word[0]):04x}{word[1:]}")
    return text


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
