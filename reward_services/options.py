"""What each scorer can be told: the `options` of a reward in deploy/rewards.yaml, one class per scorer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, model_validator

Dtype = Literal["float32", "bfloat16", "float16"]
"""The numbers that a model runs in."""
Preprocessing = Literal["openai", "transformers"]
"""Which image transform to equal.

openai: openai/CLIP's (resized in the image's own mode, corner of the crop rounded), as in most CLIP rewards.
transformers: `CLIPImageProcessor`'s (RGB first, corner floored). Odd margins and non-RGB images show it.
"""
Answers = Literal["logprobs", "choice", "json"]
"""How a judge's levels get their probabilities: see `judges.endpoint.EndpointModel`."""
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ScorerOptions(BaseModel):
    """Options of a scorer: keyword arguments of its class, and the threads it may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: ClassVar[tuple[str, ...]] = ()
    """Options that name a folder or a hub id, or map names to such."""

    def named_folders(self) -> list[str]:
        """What those options name."""
        values = [getattr(self, option) for option in self.folders]
        return [
            named for value in values for named in (value.values() if isinstance(value, dict) else [value])
        ]


class TorchOptions(ScorerOptions):
    """Options of every scorer that runs a model in torch."""

    device: str = "auto"
    """`auto` is cuda where the replica has reserved a GPU, or a part of one, by num_gpus; else cpu."""
    dtype: Dtype = "float32"
    torch_threads: PositiveInt = 1
    """Intra-op threads of torch on the CPU."""


class ClipOptions(TorchOptions):
    """Options of the `clip` scorer."""

    folders = ("model",)

    model: str
    """A CLIPModel or SiglipModel folder, or the id of a model on the Hugging Face hub."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    preprocessing: Preprocessing | None = None
    """Of a CLIP, `openai` if not said; a SigLIP's pictures are always stretched to its square."""


class AestheticOptions(TorchOptions):
    """Options of the `aesthetic` scorer."""

    folders = ("model", "head")

    model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    head: str
    """Folder or hub id with the predictor's weights; their author publishes them on GitHub."""
    head_file: str = "sac+logos+ava1-l14-linearMSE.pth"
    head_revision: str | None = None
    preprocessing: Preprocessing = "openai"


class PickScoreOptions(TorchOptions):
    """Options of the `pickscore` scorer."""

    folders = ("model", "processor")

    model: str = "yuvalkirstain/PickScore_v1"
    revision: str | None = None
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Folder or hub id with the tokenizer and the normalisation."""
    processor_revision: str | None = None
    preprocessing: Preprocessing = "transformers"


class GenevalOptions(TorchOptions):
    """Options of the `geneval` scorer."""

    folders = ("metadata", "detector", "clip")

    metadata: str
    """GenEval's evaluation_metadata.jsonl: only its prompts can be scored."""
    detector: str = "facebook/mask2former-swin-small-coco-instance"
    """Folder or hub id of a Mask2Former that was trained on COCO's instances."""
    detector_revision: str | None = None
    clip: str = "openai/clip-vit-large-patch14"
    """Folder or hub id of the CLIPModel that names colours."""
    clip_revision: str | None = None


class Hpsv2Options(TorchOptions):
    """Options of the `hpsv2` scorer."""

    folders = ("model", "architecture")

    model: str = "xswu/HPSv2"
    revision: str | None = None
    checkpoint: str = "HPS_v2_compressed.pt"
    """The file's name; HPS_v2.1_compressed.pt is version 2.1."""
    architecture: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Folder or hub id of the CLIPModel whose configuration and tokenizer the checkpoint was made with."""
    architecture_revision: str | None = None
    antialias: bool = True
    """How pictures are resized: as torchvision 0.17 and later do by default, or as older ones did."""


class ImageRewardOptions(TorchOptions):
    """Options of the `image_reward` scorer.

    Half precision costs: of the golden scores, float16 moves half by more than 0.005, bfloat16 by 0.04.
    """

    folders = ("model",)

    model: str = "zai-org/ImageReward"
    """A folder with ImageReward.pt, med_config.json and perhaps vocab.txt, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""


class CompositionalOptions(TorchOptions):
    """Options of the `compositional` scorer."""

    folders = ("models",)

    models: dict[str, str] = Field(min_length=1)
    """By name: folders or hub ids, as the `model` of `image_reward`."""
    weights: dict[str, Weight] | None = None
    """One for each of the models; without them, all count alike."""
    revisions: dict[str, str] = {}
    """Commits, tags or branches of those models that are on the hub."""

    @model_validator(mode="after")
    def _names_match(self) -> Self:
        if self.weights is not None and self.weights.keys() != self.models.keys():
            raise ValueError(f"weights must name each of the models: {', '.join(self.models)}")
        if not self.revisions.keys() <= self.models.keys():
            raise ValueError(f"revisions may name the models only: {', '.join(self.models)}")
        return self


class CustomOptions(ScorerOptions):
    """Options of the `custom` scorer: code that runs with the replica's rights, which no request can name."""

    folders = ("path",)

    path: str
    """A Python file, or the folder of a package."""
    name: str = "score"
    """Of a function or a class in it."""
    arguments: dict[str, JsonValue] = {}
    """Keyword arguments: of the class, or of the function beside images and prompts."""


class JpegOptions(ScorerOptions):
    """Options of the `jpeg` scorer."""

    direction: Literal["compressible", "incompressible"] = "compressible"


EngineArgument = Literal[
    "block_size",
    "cpu_offload_gb",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "enforce_eager",
    "kv_cache_dtype",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "seed",
]
"""Further arguments of vLLM's engine that can be given; none of them runs code or reads files."""


class JudgeOptions(ScorerOptions):
    """Options of every judge."""

    rubric: str = "alignment"
    """What it is asked: the name of one in reward_services/rubrics, or the path of a YAML file."""


class MllmOptions(JudgeOptions):
    """Options of the `mllm` judge; vLLM's documentation explains those that it shares with `vllm serve`."""

    folders = ("model", "rubric")

    model: str
    """A folder of a vision-language model in the transformers layout, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    dtype: Dtype | Literal["auto"] = "auto"
    quantization: str | None = None
    """None is as the model's own configuration says."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs of one engine; `num_gpus` of the reward must be as many."""
    max_model_len: PositiveInt | None = None
    """Tokens of picture, prompt and question together; None is the most that the model can take."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    engine: dict[EngineArgument, bool | int | float | str] = {}


class OpenaiJudgeOptions(JudgeOptions):
    """Options of the `openai_judge`; `batch.max_images` bounds the pictures that are asked about at once."""

    folders = ("rubric",)

    model: str
    """The endpoint's name for the model."""
    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://[^/?#]+[^?#]*$")
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key, where the judge runs; never the key."""
    answers: Answers = "logprobs"
    """How levels get their probabilities: `choice` is vLLM's constrained output, `json` makes one certain."""


class VerifierOptions(ScorerOptions):
    """The `verifier` has none."""
