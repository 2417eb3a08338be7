"""Which rewards are served and how: the typed form of deploy/rewards.yaml."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from reward_services.errors import ConfigInvalid
from reward_services.http.keys import NO_KEYS, is_loopback
from reward_services.options import (
    AestheticOptions,
    ClipOptions,
    CompositionalOptions,
    CustomOptions,
    GenevalOptions,
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

_ROUNDING = 1e-6

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
    target_ongoing_requests: PositiveFloat = 2.0
    """Calls under way per replica; more of them start another. They are large and few: a run's as many as its
    rewards.calls_at_once, those of a replica of the endpoint http.images_at_once / 64."""
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


class Observe(_Section):
    """How the scores of a reward are watched; see deploy/prometheus. Can be changed while the reward runs."""

    window: int = Field(default=1000, ge=10)
    """How many of the latest scores mean, spread and drift are of."""
    reference: str | None = None
    """What drift is measured against: a JSON list of scores; else the first `window` of a revision."""
    score_edges: tuple[FiniteFloat, ...] | None = None
    """Upper ends of the buckets that scores are counted in; they follow from the range otherwise."""


class _Deployed(_Section):
    num_replicas: PositiveInt = 1
    autoscaling: Autoscaling | None = None
    """Instead of num_replicas."""
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    """Of each replica, 0.2 for a fifth of one; without, it sees none and computes on CPUs."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Ray's custom resources of each replica, such as `{rewards: 1}`: they choose its nodes."""
    runtime_env: dict[str, Any] | None = None
    """Ray's runtime environment of the replicas, such as `{py_executable: /opt/venv/bin/python}`."""
    batch: Batch = Batch()
    observe: Observe = Observe()
    max_ongoing_requests: PositiveInt = 256
    """Calls that a replica holds at once; far above what one batch needs, or batches do not fill."""
    max_queued_requests: PositiveInt = 2048
    """Calls that a caller may have waiting; more are refused as overloaded."""
    health_check_period_s: PositiveFloat = 10.0
    health_check_timeout_s: PositiveFloat = 60.0

    @property
    def first_replicas(self) -> int:
        """Replicas at the start: one at least, so that a reward that cannot score is found now, not later."""
        return max(1, self.autoscaling.min_replicas) if self.autoscaling else self.num_replicas

    @property
    def most_replicas(self) -> int:
        """Replicas that there may be at a time."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas


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
    | _Scored[Literal["custom"], CustomOptions]
    | _Scored[Literal["geneval"], GenevalOptions]
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
    body_bytes_at_once: int = Field(default=512 * 2**20, ge=Limits().max_body_bytes)
    """Bytes of request bodies held at once by one replica of the endpoint; more are refused with 429."""
    pixels_at_once: PositiveInt = 1024 * 1024 * 1024
    """Pixels, of 3 bytes each, that one replica holds decoded at once; other requests wait undecoded."""
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

    @property
    def resources(self) -> dict[str, float]:
        """What the replicas at the start reserve, and the endpoint; by Ray's names."""
        asked = {"CPU": self.http.num_replicas * self.http.num_cpus if self.http else 0.0, "GPU": 0.0}
        for reward in self.rewards.values():
            for name, amount in (
                *reward.resources.items(),
                ("CPU", reward.num_cpus),
                ("GPU", reward.num_gpus),
            ):
                asked[name] = asked.get(name, 0.0) + reward.first_replicas * amount
        return asked

    @property
    def on_cpus(self) -> list[str]:
        """Rewards that would compute on a GPU and reserve none."""
        return [
            name
            for name, reward in self.rewards.items()
            if not reward.num_gpus and getattr(reward.options, "device", None) == "auto"
        ]

    @property
    def gpus(self) -> float:
        """GPUs of all replicas that there may be at a time."""
        return sum(reward.num_gpus * reward.most_replicas for reward in self.rewards.values())

    @property
    def cpus(self) -> float:
        """Cores of the same replicas."""
        return sum(reward.num_cpus * reward.most_replicas for reward in self.rewards.values())

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for name, reward in self.rewards.items():
            if reward.max_ongoing_requests < reward.batch.max_images:
                raise ValueError(f"reward {name}: max_ongoing_requests must be at least batch.max_images")
        return self


def lacking(asked: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    """The resources, by Ray's names, of which more is asked for than there is, rounding of sums aside."""
    return [name for name, amount in asked.items() if amount > there.get(name, 0.0) + _ROUNDING]
