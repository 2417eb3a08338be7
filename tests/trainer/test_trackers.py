"""Metrics, settings and pictures reach the real trackers; what fails there is said once and harms no run."""

import logging
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small_run import configured
from trainer.config import TrainConfig
from trainer.trackers import TrackerMissing, Trackers, check_trackers

PICTURES = [("a red circle", np.full((8, 8, 3), 200, dtype=np.uint8))]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trackers that write here and call nobody."""
    store = tmp_path / "mlflow"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return store


def config_with(folder: Path, pipelines: dict[str, Path], *names: str) -> TrainConfig:
    return configured(folder, pipelines["epsilon"], f"trackers=[{', '.join(names)}]")


def test_tensorboard_goes_on_where_the_run_does(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = config_with(tmp_path, pipelines, "tensorboard")
    first = Trackers(config, 0)
    for update in (1, 2, 3):
        first.record(update, {"reward": float(update), "loss": float("nan")})
    first.show(2, PICTURES)
    first.close()
    again = Trackers(config, 2)
    again.record(3, {"reward": 30.0})
    again.close()
    events = EventAccumulator(str(config.run_folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1), (2, 2), (3, 30)]
    assert "loss" not in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["validation/00 a red circle"]


def test_mlflow_has_settings_curves_and_pictures_in_one_run(
    pipelines: dict[str, Path], tmp_path: Path, environment: Path
) -> None:
    from mlflow import MlflowClient

    config = config_with(tmp_path, pipelines, "mlflow")
    for resumed, updates in ((0, (1, 2)), (2, (3,))):
        trackers = Trackers(config, resumed)
        for update in updates:
            trackers.record(update, {"score/jpeg": update / 2, "loss": float("inf")})
        trackers.show(updates[-1], PICTURES)
        trackers.close()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("diffusion-sharpening")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["sampling.steps"] == "3"
    history = client.get_metric_history(run.info.run_id, "score/jpeg")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert "loss" not in run.data.metrics
    pictures = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "validation")]
    assert pictures == ["000002-00.png", "000003-00.png"]


def test_wandb_goes_on_in_the_same_run(pipelines: dict[str, Path], tmp_path: Path, environment: Path) -> None:
    import wandb

    config = config_with(tmp_path, pipelines, "wandb")
    for update in (1, 2):
        trackers = Trackers(config, update - 1)
        trackers.record(update, {"reward": update / 2})
        trackers.show(update, PICTURES)
        trackers.close()
    wandb.teardown()  # its service writes what it was told, which may come after a run's end
    kept = (config.run_folder / "wandb_run").read_text(encoding="utf-8")
    runs = sorted((config.run_folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        assert kept in run.name.split("-")  # two in the same second are told apart by a number behind it
        (file,) = run.glob("*.wandb")
        content = file.read_bytes()
        assert b"reward" in content
        assert b"prompts_per_update" in content
        assert list(run.rglob("*.png"))


def test_wandb_has_time_to_start(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its service is a process that a busy machine starts slowly; beyond its own 30 s it waits for itself."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "0.001")
    check_trackers(["wandb"])
    assert wandb.setup().settings.x_service_wait == 300
    wandb.teardown()


def test_a_tracker_that_fails_is_said_once_and_left_alone(
    pipelines: dict[str, Path],
    tmp_path: Path,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "no-folder").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/no-folder")
    config = config_with(tmp_path, pipelines, "mlflow", "tensorboard")
    with caplog.at_level(logging.WARNING, logger="trainer.trackers"):
        trackers = Trackers(config, 0)
        trackers.record(1, {"reward": 1.0})
        trackers.record(2, {"reward": 2.0})
        trackers.close()
    assert [record.message for record in caplog.records if "mlflow is told no more: " in record.message]
    assert sum("is told no more" in record.message for record in caplog.records) == 1
    events = EventAccumulator(str(config.run_folder / "tensorboard")).Reload()
    assert len(events.Scalars("reward")) == 2


def test_what_is_missing_is_found_before_the_run(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check_trackers(["tensorboard", "wandb"])
    with pytest.raises(TrackerMissing, match="say where it is: export MLFLOW_TRACKING_URI="):
        check_trackers(["mlflow"])
    with pytest.raises(TrackerMissing, match=r"not installed; pip install 'diffusion-sharpening\[nowhere\]'"):
        check_trackers(["nowhere"])


def test_a_missing_key_of_wandb_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the environment or from where `wandb login` leaves it."""
    import wandb

    wandb.teardown()  # what it has read of the environment so far
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    logins = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(logins))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    with pytest.raises(TrackerMissing, match="has no key; call wandb login, export WANDB_API_KEY=KEY"):
        check_trackers(["wandb"])
    logins.write_text("machine wandb.example login user password " + 40 * "k", encoding="utf-8")
    check_trackers(["wandb"])
    logins.unlink()
    monkeypatch.setenv("WANDB_API_KEY", 40 * "k")
    check_trackers(["wandb"])
