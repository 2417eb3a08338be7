"""Where metrics and validation pictures go besides the run folder: TensorBoard, Weights & Biases, MLflow.

A tracker that fails is reported once and left alone: no run ends for it. A run that goes on from a checkpoint
goes on in the trackers' runs, too, whose names are kept in the run folder.
"""

import importlib.util
import logging
import math
import netrc
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from trainer.config import TrainConfig

log = logging.getLogger(__name__)

PROJECT = "diffusion-sharpening"

_WANDB_STARTS_S = 300.0

Pictures = Sequence[tuple[str, NDArray[np.uint8]]]
"""Prompts with their (H, W, 3) pictures."""


class TrackerMissing(RuntimeError):  # noqa: N818  named, as all errors here, for what is wrong
    """A tracker that cannot be used here; one line that says what to do."""


class Tracker(Protocol):
    """Something that keeps the curves of runs."""

    def record(self, update: int, scalars: Mapping[str, float]) -> None:
        """Keep the scalars of an update, all finite."""

    def show(self, update: int, pictures: Pictures) -> None:
        """Keep validation pictures."""

    def close(self) -> None:
        """Let go; the run may go on later."""


def check_trackers(names: Sequence[str]) -> None:
    """Find out whether trackers can be used, without calling them.

    Raises:
        TrackerMissing: one is not installed, nobody said where it is, or it has no key.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise TrackerMissing(
                f"{name} is among the trackers and not installed; pip install 'diffusion-sharpening[{name}]'"
            )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrackerMissing(
            "mlflow is among the trackers; say where it is: export MLFLOW_TRACKING_URI=http://HOST:5000"
        )
    if "wandb" in names and not _wandb_may_write():
        raise TrackerMissing(
            "wandb is among the trackers and has no key; call wandb login, export WANDB_API_KEY=KEY, or "
            "export WANDB_MODE=offline"
        )


class Trackers:
    """The trackers of a run; one that fails is left out from then on, with a warning."""

    def __init__(self, config: TrainConfig, resumed_update: int) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in config.trackers:
            self._guarded(name, partial(self._open, name, config, resumed_update))

    def record(self, update: int, scalars: Mapping[str, float]) -> None:
        """Tell all of them the scalars of an update; those that are not finite are left out."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(tracker.record, update, finite))

    def show(self, update: int, pictures: Pictures) -> None:
        """Show all of them validation pictures."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(tracker.show, update, pictures))

    def close(self) -> None:
        """Let go of all of them."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)

    def _open(self, name: str, config: TrainConfig, resumed_update: int) -> None:
        openers: dict[str, Callable[[], Tracker]] = {
            "tensorboard": partial(TensorBoard, config.run_folder, resumed_update),
            "wandb": partial(WeightsAndBiases, config),
            "mlflow": partial(MLflow, config),
        }
        self._trackers[name] = openers[name]()

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  other people's services fail in their own ways; the run goes on
            self._trackers.pop(name, None)
            log.warning("%s is told no more: %s", name, " ".join(str(error).split()) or type(error).__name__)


class TensorBoard:
    """Event files in the run folder; a resumed run hides what later updates had written."""

    def __init__(self, run_folder: Path, resumed_update: int) -> None:
        self._writer = SummaryWriter(run_folder / "tensorboard", purge_step=resumed_update + 1)

    def record(self, update: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars at once."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, global_step=update)
        self._writer.flush()

    def show(self, update: int, pictures: Pictures) -> None:
        """Write the pictures, each under its prompt."""
        for number, (prompt, picture) in enumerate(pictures):
            tag = f"validation/{number:02d} {prompt:.60}"
            self._writer.add_image(tag, picture, global_step=update, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and the rest of its environment hold."""

    def __init__(self, config: TrainConfig) -> None:
        import wandb  # noqa: PLC0415  an extra

        self._wandb = wandb
        _wandb_settings()
        name = _kept(config.run_folder / "wandb_run", lambda: uuid.uuid4().hex)
        self._run = wandb.init(
            id=name,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.run_folder.name,
            dir=config.run_folder,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )
        # Its own step may only grow, and updates after a checkpoint are made again.
        self._run.define_metric("*", step_metric="update")

    def record(self, update: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars against the update."""
        self._run.log({"update": update, **scalars})

    def show(self, update: int, pictures: Pictures) -> None:
        """Log the pictures with their prompts."""
        images = [self._wandb.Image(picture, caption=prompt) for prompt, picture in pictures]
        self._run.log({"update": update, "validation": images})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow:
    """A run at MLFLOW_TRACKING_URI, in MLFLOW_EXPERIMENT_NAME if that is set."""

    def __init__(self, config: TrainConfig) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  an extra
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        self._client, self._metric = MlflowClient(), Metric
        self._run = _kept(config.run_folder / "mlflow_run", lambda: self._begun(config, Param))
        self._client.update_run(self._run, status="RUNNING")

    def record(self, update: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars; the update is the step."""
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(name, value, now_ms, update) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def show(self, update: int, pictures: Pictures) -> None:
        """Keep the pictures as artifacts of the run."""
        for number, (_, picture) in enumerate(pictures):
            self._client.log_image(self._run, picture, f"validation/{update:06d}-{number:02d}.png")

    def close(self) -> None:
        """Say that nothing is under way any more."""
        self._client.set_terminated(self._run)

    def _begun(self, config: TrainConfig, param: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = str(self._client.create_run(number, run_name=config.run_folder.name).info.run_id)
        settings = _flat(config.model_dump(mode="json"))
        self._client.log_batch(run, params=[param(key, str(value)) for key, value in settings.items()])
        return run


def _wandb_settings() -> Any:
    """W&B's settings, its service started. A busy machine takes longer than its own 30 s, then it hangs."""
    import wandb  # noqa: PLC0415  an extra

    return wandb.setup(wandb.Settings(x_service_wait=_WANDB_STARTS_S)).settings


def _wandb_may_write() -> bool:
    """Whether W&B has a key, which is not tried, or needs none."""
    settings = _wandb_settings()
    if settings.mode in ("offline", "dryrun", "disabled") or os.environ.get("WANDB_API_KEY"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlsplit(settings.base_url).hostname or "") is not None


def _kept(file: Path, make: Callable[[], str]) -> str:
    """What the file holds, or else what is made, from then on in the file."""
    if not file.exists():
        file.write_text(make(), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
