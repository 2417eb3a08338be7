"""Which rewards are served and how: the typed form of deploy/rewards.yaml.

Relative model folders and files of keys are resolved against the folder of the configuration file:
`rewards serve` works from anywhere, and under `ray job submit --working-dir .`. A name without such a folder
is a hub model.
"""

from __future__ import annotations

import difflib
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from reward_services.errors import ConfigInvalid
from reward_services.http.keys import ENVIRONMENT, NO_KEYS, is_loopback
from reward_services.options import (
    AestheticOptions,
    ClipOptions,
    CompositionalOptions,
    Hpsv2Options,
    ImageRewardOptions,
    JpegOptions,
    MllmOptions,
    OpenaiJudgeOptions,
    PickScoreOptions,
    ScorerOptions,
    VerifierOptions,
)
from reward_services.schema import Limits

Name = TypeVar("Name", bound=str)
Options = TypeVar("Options", bound=ScorerOptions)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Batch(_Section):
    """Dynamic batching across all callers; can be changed while the reward runs."""

    max_images: PositiveInt = 64
    """Most images that are scored at once."""
    wait_ms: NonNegativeFloat = 10.0
    """How long the first image of a batch waits for others."""


class Autoscaling(_Section):
    """Replicas that follow the number of calls under way."""

    min_replicas: int = Field(default=1, ge=0)
    """0: the last replica goes when nothing was asked for a while; the next request starts one."""
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = 16.0
    """Calls under way per replica; more of them start another."""
    look_back_period_s: float = Field(default=30.0, gt=10.0)
    """Over which the calls under way are averaged; Serve counts them every 10 s."""
    upscale_delay_s: NonNegativeFloat = 30.0
    downscale_delay_s: NonNegativeFloat = 600.0
    downscale_to_zero_delay_s: NonNegativeFloat | None = None
    """For the last replica; by default as for the others."""

    @model_validator(mode="after")
    def _some_at_most(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must be at most max_replicas")
        return self


class _Deployed(_Section):
    num_replicas: PositiveInt = 1
    autoscaling: Autoscaling | None = None
    """Instead of num_replicas."""
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    runtime_env: dict[str, Any] | None = None
    """Ray's runtime environment of the replicas, such as `{py_executable: /opt/venv/bin/python}`."""
    batch: Batch = Batch()
    max_ongoing_requests: PositiveInt = 256
    """Calls that a replica holds at once; far above what one batch needs, or batches do not fill."""
    max_queued_requests: PositiveInt = 2048
    """Calls that a caller may have waiting; more are refused as overloaded."""
    health_check_period_s: PositiveFloat = 10.0
    health_check_timeout_s: PositiveFloat = 60.0


class _Scored(_Deployed, Generic[Name, Options]):
    scorer: Name
    options: Options

    @model_validator(mode="before")
    @classmethod
    def _options_may_be_left_out(cls, given: Any) -> Any:
        return {"options": {}, **given} if isinstance(given, dict) else given


class _Mllm(_Scored[Literal["mllm"], MllmOptions]):
    health_check_period_s: PositiveFloat = 1.0
    """The engine is a process of its own, and is to be missed soon."""

    @model_validator(mode="after")
    def _a_gpu_for_each_part(self) -> Self:
        if self.num_gpus and self.num_gpus < self.options.tensor_parallel_size:
            raise ValueError("num_gpus must be at least options.tensor_parallel_size")
        return self


Reward = Annotated[
    _Scored[Literal["aesthetic"], AestheticOptions]
    | _Scored[Literal["clip"], ClipOptions]
    | _Scored[Literal["compositional"], CompositionalOptions]
    | _Scored[Literal["hpsv2"], Hpsv2Options]
    | _Scored[Literal["image_reward"], ImageRewardOptions]
    | _Scored[Literal["jpeg"], JpegOptions]
    | _Mllm
    | _Scored[Literal["openai_judge"], OpenaiJudgeOptions]
    | _Scored[Literal["pickscore"], PickScoreOptions]
    | _Scored[Literal["verifier"], VerifierOptions],
    Field(discriminator="scorer"),
]
"""A reward: which scorer, told what, and how it is deployed."""
REWARD: TypeAdapter[Reward] = TypeAdapter(Reward)
RewardName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Http(_Section):
    """The HTTP endpoint. Beyond this machine it answers callers with keys only."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    keys: str = NO_KEYS
    """A file of keys (see http/keys.py), `env:VARIABLE`, or `none`: on a loopback host only."""
    request_timeout_s: PositiveFloat = 150.0
    num_replicas: PositiveInt = 1
    num_cpus: NonNegativeFloat = 0.1
    images_at_once: PositiveInt = 512
    """Images under way to the rewards from one replica of the endpoint; other callers wait, by lane."""
    images_waiting: PositiveInt = 2048
    """Images of the callers who wait; more are refused with 429."""
    pickle_routes: bool = False
    """Whether verl-omni's and flow_grpo's clients are answered, who send pickles; only plain data is read."""

    @model_validator(mode="after")
    def _others_need_keys(self) -> Self:
        if self.keys == NO_KEYS and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is open to others: set keys to a file; `rewards key new NAME` makes one"
            )
        return self

    def check_port(self) -> None:
        """Raises `ConfigInvalid` when something listens there already."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                where = f"{self.host}:{self.port}"
                raise ConfigInvalid(
                    f"cannot listen on {where} ({error.strerror}); set another http.port"
                ) from error


class StrictLimits(Limits):
    """The limits of one request, as a configuration states them: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class ServicesConfig(_Section):
    """The whole file."""

    rewards: dict[RewardName, Reward] = Field(min_length=1)
    http: Http | None = Http()
    """None: reachable from within the cluster only."""
    limits: StrictLimits = StrictLimits()

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for name, reward in self.rewards.items():
            if reward.max_ongoing_requests < reward.batch.max_images:
                raise ValueError(f"reward {name}: max_ongoing_requests must be at least batch.max_images")
        return self


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
    options = reward.options.model_copy(update=found)
    return reward.model_copy(
        update={"options": options, "runtime_env": _env_located(reward.runtime_env, folder)}
    )


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
    """An absolute path for a folder, existing or meant as one; anything else is a name on the hub."""
    if isinstance(named, dict):
        return {name: str(_located(one, folder)) for name, one in named.items()}
    is_folder = (folder / named).is_dir() or named.startswith(".") or named.count("/") > 1
    return str((folder / named).resolve()) if is_folder else named


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
    return f"{where or 'the file'}: {first['msg']}"


def _keys(model: type[BaseModel]) -> set[str]:
    inner = [found for field in model.model_fields.values() for found in _models(field.annotation)]
    return set(model.model_fields).union(*(_keys(found) for found in inner))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
