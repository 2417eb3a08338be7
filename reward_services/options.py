"""What each scorer can be told: the `options` of a reward in deploy/rewards.yaml, one class per scorer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt


class ScorerOptions(BaseModel):
    """Options of a scorer: keyword arguments of its class, and the threads it may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: ClassVar[tuple[str, ...]] = ()
    """Options that name a folder, or what lies on the hub."""


class ClipOptions(ScorerOptions):
    """Options of the `clip` scorer."""

    folders = ("model",)

    model: str
    """A CLIPModel folder, or the id of a model on the Hugging Face hub."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    device: str = "auto"
    """`auto` is cuda where there is one, else cpu."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    preprocessing: Literal["openai", "transformers"] = "openai"
    torch_threads: PositiveInt = 1
    """Intra-op threads of torch on the CPU."""


class JpegOptions(ScorerOptions):
    """Options of the `jpeg` scorer."""

    direction: Literal["compressible", "incompressible"] = "compressible"


class VerifierOptions(ScorerOptions):
    """The `verifier` has none."""
