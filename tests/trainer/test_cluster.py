"""RAY. Whole runs on a real cluster: two ranks, rewards by Serve, report; kill -9; Ctrl-C and resume."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray import serve

from reward_services import RewardUnknown
from tests.captioned import picture, rows, write_folder
from tests.processes import PATIENCE_S, pids_titled, wait_for
from tests.small_run import configured, picked, relative_difference, settings, weights_of
from tests.sockets import beyond_loopback, documented
from trainer.cluster import CoordinatorScoring, scoring_of, scoring_on_ray
from trainer.config import TrainConfig, load_config
from trainer.driver import RunFailed, begin, check, conclude, watch
from trainer.metrics import read_metrics
from trainer.rank_group import run_ranks
from trainer.revisions import RevisionChanged
from trainer.run_folder import RunFolder

ROOT = Path(__file__).parents[2]

# Ray leaves sockets and files of its processes to the garbage collector, and ray.data warns of itself.
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::FutureWarning", "default::DeprecationWarning"
)


def written(folder: Path, pipeline: Path, clip: Path, **changes: Any) -> Path:
    """Settings with rewards for Serve: two ranks, eight updates, a checkpoint after every second."""
    values = settings(folder, pipeline)
    values["rewards"] = {
        "services": str(folder / "rewards.yaml"),
        "weights": {"jpeg": 1.0, "clip": 0.1},
        "judge": "large",
        "ready_timeout_s": PATIENCE_S,
    }
    values["updates"] = 8
    values["checkpoint"] = {"every_updates": 2}
    values["ranks"] = {"workers": 2, "cpus_per_worker": 0.5}
    values["evaluation"]["features"] = str(clip)
    light = {"num_cpus": 0.1, "health_check_period_s": 1.0}
    rewards = {
        "jpeg": {"scorer": "jpeg", **light},
        "clip": {"scorer": "clip", "options": {"model": str(clip)}, **light},
        "large": {"scorer": "jpeg", "options": {"direction": "incompressible"}, **light},
    }
    (folder / "rewards.yaml").write_text(yaml.safe_dump({"rewards": rewards}), encoding="utf-8")
    (folder / "settings.yaml").write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return folder / "settings.yaml"


def updates_made(config: TrainConfig) -> int:
    return len(read_metrics(config.run_folder / "metrics.jsonl"))


def has_made(config: TrainConfig, updates: int) -> bool:
    return updates_made(config) >= updates


def summary(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.run_folder / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pipelines: dict[str, Path], clip_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    return written(folder, pipelines["epsilon"], clip_folder)


@pytest.fixture(scope="module")
def on_ray(files: Path) -> Iterator[tuple[TrainConfig, CoordinatorScoring]]:
    config = load_config(files)
    with scoring_on_ray(config, None) as scoring:
        assert isinstance(scoring, CoordinatorScoring)
        yield config, scoring
        serve.shutdown()


def ran(config: TrainConfig, scoring: CoordinatorScoring) -> TrainConfig:
    """To the end, with all that the command does around a run on a cluster."""
    folder = check(config)
    begin(config, folder)
    watch(config, folder, lambda: run_ranks(config, scoring))
    assert conclude(folder) == f"Report: {folder.path / 'report.html'}"
    return config


@pytest.fixture(scope="module")
def unbroken(on_ray: tuple[TrainConfig, CoordinatorScoring]) -> TrainConfig:
    """A run that nobody disturbs."""
    return ran(*on_ray)


def test_a_run_leaves_all_it_promises(unbroken: TrainConfig) -> None:
    folder = unbroken.run_folder
    left = {path.name for path in folder.iterdir()}
    assert left == {
        *("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "summary.json", "report.html"),
        *("pipeline", "evaluations", "report"),
    }
    said = summary(unbroken)
    assert (said["updates"], said["pictures"], said["devices"]) == (8, 8, pytest.approx(2 * 0.5 + 3 * 0.1))
    assert said["images_scored"] == 8 * 4 * 3
    # A micro-batch of each rank in each update, by two rewards; ranks may share one, evaluations come on top.
    assert 8 * 2 <= said["reward_calls"] <= 8 * 2 * 2 + 24
    assert said["unet_evaluations"] == 8 * (4 * 3 * 3 * 2 + 4 * 2 * 2 * 2 * 2 * 2)
    assert said["diversity_before"] > 0
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_result_is_plain_diffusers(unbroken: TrainConfig) -> None:
    code = (
        "import sys\nfrom diffusers import StableDiffusionXLPipeline\n"
        "pipeline = StableDiffusionXLPipeline.from_pretrained(sys.argv[1])\n"
        "image = pipeline('a red circle', num_inference_steps=3, height=16, width=16).images[0]\n"
        "assert not {'trainer', 'reward_services'} & set(sys.modules)\nprint(image.size)"
    )
    command = [sys.executable, "-P", "-c", code, str(unbroken.run_folder / "pipeline")]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert result.stdout.strip() == "(16, 16)", result.stderr


RANK, COORDINATOR, REPLICA = "RayTrainWorker", "ObservedCoordinator", "ServeReplica:rewards:clip"


@pytest.mark.parametrize(
    "victims",
    [(RANK, REPLICA), pytest.param((RANK, COORDINATOR, REPLICA) * 2, marks=pytest.mark.slow)],
    ids=["a rank and a replica", "each twice"],
)
def test_killed_processes_cost_nothing_but_unsaved_updates(
    unbroken: TrainConfig,
    on_ray: tuple[TrainConfig, CoordinatorScoring],
    tmp_path: Path,
    victims: Sequence[str],
) -> None:
    """kill -9 of one after the other, an update between: the run finishes as the undisturbed one did."""
    config, scoring = on_ray
    ranks = config.ranks.model_copy(update={"max_failures": len(victims)})
    config = config.model_copy(update={"run_folder": tmp_path / "run", "ranks": ranks})
    config.run_folder.mkdir()
    running = threading.Thread(target=run_ranks, args=(config, scoring))
    running.start()
    earlier: set[int] = set()
    for number, victim in enumerate(victims):
        wait_for(partial(has_made, config, number + 2))
        pids = wait_for(partial(pids_titled, victim))
        os.kill(max(pids), signal.SIGKILL)
        earlier |= pids
    running.join(len(victims) * PATIENCE_S)
    assert not running.is_alive()
    assert RunFolder(config.run_folder).is_finished
    assert RunFolder(config.run_folder).failure is None
    assert not pids_titled(RANK) & earlier
    # Which pictures share a reward's call depends on time, and so does the order of its sums: within some
    # updates that turns a pixel, and with it a byte of a JPEG. Another prompt moves rewards by 0.1.
    assert picked(config) == [pytest.approx(line, rel=1e-2, abs=1e-3) for line in picked(unbroken)]
    assert relative_difference(weights_of(unbroken), weights_of(config), Path(config.model.path)) < 1e-3
    for spent in ("updates", "images_scored", "unet_evaluations"):
        assert summary(config)[spent] == summary(unbroken)[spent]


def test_given_pictures_are_learned_without_a_coordinator(
    on_ray: tuple[TrainConfig, CoordinatorScoring], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody is there to score them; who scores other runs on the cluster is left alone.

    What a rank warns of is told where the command runs: a picture that is broken.
    """
    config, _ = on_ray
    broken = {"text": "broken", "image": picture("red", 400, 400)[:-200]}
    source = write_folder(tmp_path / "pictures", [*rows(4), broken])
    overrides = ("method=standard", f"data.source={source}", "prompts={}", "rewards={}", "updates=2")
    config = configured(tmp_path, Path(config.model.path), *overrides)
    folder, before = RunFolder(config.run_folder), pids_titled(COORDINATOR)
    watch(config, folder, lambda: run_ranks(config, scoring_of(config)))
    assert folder.is_finished
    assert pids_titled(COORDINATOR) == before
    (warning,) = folder.warnings
    assert warning.startswith(f"{source}, row 4: picture ")
    assert f"Warning: {warning}\n" in capfd.readouterr().err


def test_a_mistake_ends_the_run_at_once(
    on_ray: tuple[TrainConfig, CoordinatorScoring], tmp_path: Path
) -> None:
    """Ray Train does not start the ranks again for it: what is wrong is in the folder, in a line."""
    config, scoring = on_ray
    gone = config.prompts.model_copy(update={"train": str(tmp_path / "gone.txt")})
    config = config.model_copy(update={"run_folder": tmp_path / "run", "prompts": gone})
    config.run_folder.mkdir()
    run_ranks(config, scoring)
    failure = RunFolder(config.run_folder).failure
    assert (
        failure
        == f"{tmp_path}/gone.txt: cannot be read (No such file or directory); check prompts in the config"
    )
    assert [path.name for path in config.run_folder.iterdir()] == ["failure"]


@pytest.mark.slow
def test_a_crash_that_comes_again_is_told_in_a_line(
    on_ray: tuple[TrainConfig, CoordinatorScoring], tmp_path: Path
) -> None:
    """Where metrics belong there is a folder: that is not among the mistakes that ranks look for."""
    config, scoring = on_ray
    ranks = config.ranks.model_copy(update={"workers": 1, "max_failures": 0})
    config = config.model_copy(update={"run_folder": tmp_path / "run", "ranks": ranks})
    (config.run_folder / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"^rank 0 failed, after 0 restarts too: .*Is a directory.*$"):
        run_ranks(config, scoring)
    assert RunFolder(config.run_folder).failure is None


def test_errors_of_the_rewards_come_as_they_are(
    on_ray: tuple[TrainConfig, CoordinatorScoring], tmp_path: Path
) -> None:
    _, scoring = on_ray
    pending = scoring.submit(torch.zeros(1, 16, 16, 3, dtype=torch.uint8).numpy(), [""], ["aesthetic"])
    with pytest.raises(RewardUnknown, match="aesthetic"):
        pending()
    stats: Mapping[str, float] = scoring.stats()
    assert stats["reward_calls"] > 0


def test_a_pinned_run_does_not_start_with_another_reward(
    on_ray: tuple[TrainConfig, CoordinatorScoring], tmp_path: Path
) -> None:
    """A run that was stopped, then the reward changed."""
    config, scoring = on_ray
    rewards = config.rewards.model_copy(update={"revisions": "pin"})
    config = config.model_copy(update={"run_folder": tmp_path, "rewards": rewards})
    folder = RunFolder(tmp_path)
    assert "pillow" in scoring.pinned(folder, ["jpeg"]).seen.pinned["jpeg"]
    (tmp_path / "revisions.json").write_text(json.dumps({"jpeg": "jpeg-94"}), encoding="utf-8")
    with pytest.raises(RevisionChanged, match="the run is pinned to 'jpeg-94'"):
        run_ranks(config, scoring)


def test_rewards_that_are_not_there_are_a_line(tmp_path: Path, pipelines: dict[str, Path]) -> None:
    """Before anything is started, when they are named wrongly; at once, where no cluster is."""
    (tmp_path / "rewards.yaml").write_text("rewards: {jpeg: {scorer: jpeg}}", encoding="utf-8")
    served = (f"rewards.services={tmp_path / 'rewards.yaml'}", "rewards.url=null")
    config = configured(tmp_path, pipelines["epsilon"], *served)
    with pytest.raises(RewardUnknown, match=r"'large', which .* does not serve; it serves jpeg"):
        scoring_on_ray(config, None).__enter__()
    config = configured(tmp_path, pipelines["epsilon"])
    for address, says in (("127.0.0.1:1", "no Ray cluster answers at"), ("ray://a:1", "is no address of")):
        with pytest.raises(RunFailed, match=says):
            scoring_on_ray(config, address).__enter__()


def test_ctrl_c_saves_and_the_run_goes_on(
    on_ray: tuple[TrainConfig, CoordinatorScoring], unbroken: TrainConfig, files: Path, tmp_path: Path
) -> None:
    """As a terminal does it: the signal goes to every process of the group.

    Until then nobody else could reach the run but where it is documented.
    """
    overrides = (f"run_folder={tmp_path / 'run'}", "updates=8")
    config = load_config(files, overrides)
    command = [sys.executable, "-m", "trainer", "train", str(files)]
    command += [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: updates_made(config) >= 2 or process.poll() is not None)
    open_ones = beyond_loopback(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "Stopped after saving a checkpoint; the same command goes on from there" in out
    assert "Saving a checkpoint after this update" in err
    assert "Traceback" not in err
    for noise in ("INFO", "WARN", "raylet", "ray::"):
        assert noise not in err + out
    assert 2 <= updates_made(config) < 8
    kinds = {kind for kind in documented() for title, _, _ in open_ones if kind in title}
    assert kinds == set(documented())
    assert [title for title, _, _ in open_ones if not any(kind in title for kind in kinds)] == []
    ran(config, on_ray[1])
    assert relative_difference(weights_of(unbroken), weights_of(config), Path(config.model.path)) < 1e-3
