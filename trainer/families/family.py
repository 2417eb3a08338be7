"""What differs between kinds of diffusers pipeline, and what a network is told of a prompt.

Shapes: N pictures, L tokens, (C, h, w) a latent, (H, W) a picture.
"""

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trainer.diffusion import Schedule

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of attention."""
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The same where pictures and prompts have projections of their own and are read together."""


class ModelError(ValueError):
    """A model that cannot be trained here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """N encoded prompts, and the sizes of the pictures that they are to become."""

    hidden: Tensor
    """(N, L, D) token features."""
    pooled: Tensor
    """(N, E) features of the whole prompt; (N, 0) where the network asks for none."""
    sizes: Tensor
    """(N, 6) pixels down and across: of the picture before it was scaled, cut off it then, of what is drawn;
    (N, 0) where the network asks for none."""

    def take(self, rows: Tensor) -> "Conditioning":
        """The given rows, repeats allowed."""
        return Conditioning(self.hidden[rows], self.pooled[rows], self.sizes[rows])

    def to(self, device: torch.device) -> "Conditioning":
        """The same prompts on another device."""
        return Conditioning(self.hidden.to(device), self.pooled.to(device), self.sizes.to(device))

    def of_sizes(self, sizes: Tensor) -> "Conditioning":
        """The same prompts for pictures of other sizes, one a row."""
        return Conditioning(self.hidden, self.pooled, sizes)

    @staticmethod
    def joined(parts: "Sequence[Conditioning]") -> "Conditioning":
        """The rows of all parts, one after the other."""
        columns = zip(*((part.hidden, part.pooled, part.sizes) for part in parts))
        return Conditioning(*map(torch.cat, columns))


class Family(ABC):
    """A loaded pipeline, and what pipelines of its kind do their own way."""

    pipeline_class: ClassVar[Any]
    """Its class in diffusers."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """What `from_pretrained` is told besides path, revision and number type."""
    t5: ClassVar[tuple[str, ...]] = ()
    """The parts of a T5 that pipelines of this kind can do without."""
    denoiser: ClassVar[Literal["unet", "transformer"]]
    """The pipeline's name for the network that is trained."""
    lora_targets: ClassVar[tuple[str, ...]] = ATTENTION
    """Layers that get an adapter unless others are named: the projections of attention."""

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        """A family around its loaded pipeline.

        Args:
            pipeline: of `pipeline_class`.
            image_size: side of its pictures in pixels; None is the size the model was made for.

        Raises:
            ModelError: it has no pictures of this size, or its scheduler is of another kind.
        """
        self.pipeline = pipeline
        if image_size is not None and image_size % self.image_step:
            raise ModelError(
                f"model.image_size is {image_size}; {pipeline.name_or_path} draws multiples of "
                f"{self.image_step} pixels"
            )
        self._side = image_size // pipeline.vae_scale_factor if image_size else self.usual_side
        self.schedule(1)

    @property
    def network(self) -> Any:
        """The network that is trained, as the pipeline has it."""
        return getattr(self.pipeline, self.denoiser)

    @property
    def usual_side(self) -> int:
        """Latent pixels along the side of the pictures that the model was made for."""
        return int(self.network.config.sample_size)

    @property
    def patch(self) -> int:
        """Latent pixels along the side of what the network takes for one."""
        return 1

    @property
    def image_step(self) -> int:
        """Pixels of which the sides of its pictures are multiples."""
        return int(self.pipeline.vae_scale_factor * self.patch)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self.pipeline.vae.config.latent_channels, self._side, self._side

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self._side // self.patch) ** 2

    def save(self, folder: Path) -> None:
        """Write the pipeline in float32, whatever it runs in.

        Nothing of what was trained is rounded, and diffusers, which takes its own networks for float32 and
        those of transformers for what they were saved in, needs not be told of a number format.
        """
        networks = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        with _in_float32(networks):
            self.pipeline.save_pretrained(folder)
        for name, part in self.pipeline.components.items():
            if isinstance(part, PreTrainedTokenizerBase):
                _keep_files(Path(part.name_or_path), folder / name)

    @classmethod
    def evaluations(cls, guidance: float) -> int:
        """Network evaluations that one prediction of one picture takes.

        At a scale of 1 or less there is no guidance, as in diffusers: models that were distilled to do
        without are published with a scale of 0.
        """
        return 1 if guidance <= 1 else 2

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """The noise levels of a trajectory of `steps` steps."""

    @abstractmethod
    def encode(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """N prompts, N rows."""

    @property
    def reader(self) -> tuple[Any, int]:
        """The tokenizer of the text encoder that reads most of a prompt, and how many tokens that is."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    def cut_off(self, texts: Sequence[str]) -> int:
        """How many prompts end beyond what any text encoder reads."""
        tokenizer, most = self.reader
        # Tokens are no more than bytes, and the two that mark beginning and end: few are worth a look.
        long = [text for text in texts if len(text.encode("utf-8", "surrogatepass")) + 2 > most]
        found = tokenizer(long, verbose=False).input_ids if long else []
        return sum(len(tokens) > most for tokens in found)

    def encode_empty(self, device: torch.device) -> Conditioning:
        """The prompt that guidance leads away from, one row."""
        return self.encode([""], device)

    @abstractmethod
    def evaluate(
        self, network: nn.Module, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float
    ) -> Tensor:
        """The network's output, (N, C, h, w).

        Args:
            network: the one that is trained, or its reference.
            sample: (N, C, h, w) noisy latents.
            timesteps: (N,) as the schedule has them.
            text: N rows.
            guidance: scale of guidance, for a network that takes it as an input.
        """


def _keep_files(source: Path, folder: Path) -> None:
    """Let a saved tokenizer have the files it was loaded from, if they are still there.

    What one release of transformers writes, another may not read.
    """
    if (source / "tokenizer_config.json").is_file():
        shutil.rmtree(folder)
        shutil.copytree(source, folder)


@contextlib.contextmanager
def _in_float32(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Within this block networks are in float32: what is not waits, and is in the host's memory meanwhile."""
    halves = {
        tensor: tensor.data
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16)
    }
    try:
        for tensor, values in halves.items():
            tensor.data = values.to("cpu", torch.float32)
        yield
    finally:
        for tensor, values in halves.items():
            tensor.data = values


def compile_blocks(network: Any) -> None:
    """Have torch compile the blocks that a network of diffusers repeats, at their first evaluation."""
    # Blocks of a class share what is compiled: with gradients and without, adapters on, off and merged, one
    # picture and several. After 8 torch would compile no more, and evaluate what comes then as it is.
    torch._dynamo.config.recompile_limit = 64
    # Stable Diffusion 3's transformer only says which blocks stay in one piece: the same.
    blocks = network._repeated_blocks or network._no_split_modules
    for module in network.modules():
        if type(module).__name__ in blocks:
            module.compile()
