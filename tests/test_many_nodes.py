"""RAY. Runs on clusters of several nodes that lose nodes of trainers and of rewards, and get others.

Nodes are `ray start` processes on this machine, told apart by custom resources as machines would be. A node
dies by kill -9 of its raylet. What is promised is what an undisturbed run on the same nodes leaves.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_services.http.keys import new_key
from tests.ports import free_port
from tests.processes import wait_for
from tests.ray_nodes import PATIENCE_S, Job, RayNodes, command, shell
from tests.small_run import CPU, ScoringHere, in_two_ranks, relative_difference, settings, weights_of
from tests.tiny import write_pipeline
from trainer import loop
from trainer.config import TrainConfig, load_config
from trainer.metrics import read_metrics
from trainer.ranks import Ranks

pytestmark = pytest.mark.slow

UPDATES = 12


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory: two ranks and two rewards, each on its nodes; a checkpoint every second update."""
    folder = tmp_path_factory.mktemp("tree")
    write_pipeline(folder / "model", "epsilon")
    values = settings(folder, Path("model"))
    values["updates"] = UPDATES
    values["checkpoint"] = {"every_updates": 2}
    values["prompts"] = {"train": "train.jsonl", "held_out": "held-out.jsonl"}
    here = {"services": "rewards.yaml", "url": None, "ready_timeout_s": PATIENCE_S}
    # A node is missed after half a minute, and then a replica has to start on another.
    values["rewards"] |= here | {"deadline_s": PATIENCE_S, "revisions": "pin"}
    values["ranks"] = {"workers": 2, "cpus_per_worker": 0.5, "resources": {"trainer": 1}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    write_rewards(folder / "rewards.yaml", http=None)
    return folder


def write_rewards(path: Path, *, http: Mapping[str, Any] | None, wait_ms: float = 10.0) -> None:
    """The rewards of `ScoringHere`, on nodes of their own; updates take as long as a batch waits to fill."""
    reward = {"scorer": "jpeg", "num_cpus": 0.1, "resources": {"rewards": 1}, "batch": {"wait_ms": wait_ms}}
    large = {**reward, "options": {"direction": "incompressible"}}
    services = {"rewards": {"jpeg": reward, "large": large}, "http": http}
    path.write_text(yaml.safe_dump(services), encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two ranks that loses nothing, without Ray."""
    config = settings_here(tree, tmp_path_factory.mktemp("undisturbed") / "run")
    in_two_ranks(whole_run, config)
    return config


def whole_run(ranks: Ranks, config: TrainConfig) -> None:
    assert loop.run(config, scoring=ScoringHere(), ranks=ranks, device=CPU)


def settings_here(tree: Path, folder: Path) -> TrainConfig:
    """The settings of the tree as they are outside of it."""
    paths = {"model.path": "model", "prompts.train": "train.jsonl", "prompts.held_out": "held-out.jsonl"}
    changes = [f"{key}={tree / name}" for key, name in paths.items()]
    return load_config(tree / "settings.yaml", [f"run_folder={folder}", *changes])


def submitted(
    cluster: RayNodes, tree: Path, folder: Path, *overrides: str, **variables: str
) -> tuple[Job, TrainConfig]:
    """A run on the cluster."""
    options = [part for change in (f"run_folder={folder}", *overrides) for part in ("--set", change)]
    job = cluster.submit(tree, "sharpen", "train", "settings.yaml", *options, **variables)
    return job, settings_here(tree, folder)


def summary_of(config: TrainConfig) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((config.run_folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def disturb(job: Job, config: TrainConfig, trainers: RayNodes, rewards: RayNodes) -> None:
    """In mid-run kill a node that scores and one that trains, then add one that can train."""
    wait_until(job, lambda: updates(config) >= 3)
    # Behind the application's name, which is the run's own or not.
    scoring = [name for name in ("rewards-1", "rewards-2") if rewards.pids(name, ":jpeg")]
    rewards.kill(scoring[0])
    trainers.kill("trainer-2")
    trainers.add("trainer-3", trainer=1)
    wait_until(job, lambda: trainers.pids("trainer-3", "RayTrainWorker"))


def wait_until(job: Job, reached: Callable[[], object]) -> None:
    """Wait for something that happens while the job runs."""

    def over() -> bool:
        return job.process.poll() is not None

    wait_for(lambda: reached() or over(), PATIENCE_S)
    assert not over(), job.said


def updates(config: TrainConfig) -> int:
    """That the run has made."""
    return len(read_metrics(config.run_folder / "metrics.jsonl"))


def check_end(job: Job, config: TrainConfig, undisturbed: TrainConfig) -> None:
    """Nothing is lost or counted twice, but for work since the last checkpoint, which is made again."""
    assert job.process.wait(timeout=3 * PATIENCE_S) == 0, job.said
    assert f"Report: {config.run_folder / 'report.html'}" in job.said
    lines = read_metrics(config.run_folder / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    summary, expected = summary_of(config), summary_of(undisturbed)
    for name in ("updates", "pictures", "images_scored", "unet_evaluations", "accuracy_after"):
        assert summary[name] == expected[name]
    moved = relative_difference(weights_of(undisturbed), weights_of(config), Path(config.model.path))
    assert moved < 1e-3
    # Weights a rounding apart draw some pixels one level apart, which is a byte of a file's 870 or so.
    assert summary["reward_after"] == pytest.approx(expected["reward_after"], rel=1e-3)


def test_nodes_of_one_cluster_come_and_go(undisturbed: TrainConfig, tree: Path, tmp_path: Path) -> None:
    """Ranks on the nodes of trainers, rewards on theirs, handles between them."""
    with RayNodes(tmp_path, shell()) as nodes:
        for place in (1, 2):
            nodes.add(f"trainer-{place}", trainer=1)
            nodes.add(f"rewards-{place}", rewards=2)
        job, config = submitted(nodes, tree, tmp_path / "run")
        disturb(job, config, nodes, nodes)
        check_end(job, config, undisturbed)


def test_rewards_in_a_cluster_of_their_own(undisturbed: TrainConfig, tree: Path, tmp_path: Path) -> None:
    """Over HTTP, with a key, from a cluster with another token."""
    key, line = new_key("trainer", "train")
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    port, served, others = free_port(), tmp_path / "rewards.yaml", shell()
    write_rewards(served, http={"port": port, "keys": "keys.yaml"})
    url = (f"rewards.url=http://127.0.0.1:{port}", "rewards.services=null")
    for folder in ("train", "score"):
        (tmp_path / folder).mkdir()
    with (
        RayNodes(tmp_path / "train", shell()) as trainers,
        RayNodes(tmp_path / "score", others) as rewards,
    ):
        for place in (1, 2):
            trainers.add(f"trainer-{place}", trainer=1)
            rewards.add(f"rewards-{place}", rewards=2)
        where = ("--address", rewards.address, "--timeout", str(PATIENCE_S))
        serving = command(others, "rewards", "serve", str(served), *where)
        assert serving.returncode == 0, serving.stderr
        refused, _ = submitted(trainers, tree, tmp_path / "refused", *url)
        assert refused.process.wait(timeout=PATIENCE_S) != 0
        assert "Authorization: Bearer" in refused.said
        job, config = submitted(trainers, tree, tmp_path / "run", *url, REWARDS_API_KEY=key)
        disturb(job, config, trainers, rewards)
        check_end(job, config, undisturbed)


def test_ranks_are_as_many_as_there_are_nodes(undisturbed: TrainConfig, tree: Path, tmp_path: Path) -> None:
    """A run begins on one node, takes up a second, loses it, and ends as two ranks would have all along."""
    write_rewards(tree / "slow.yaml", http=None, wait_ms=3000.0)
    options = ("ranks.min_workers=1", "ranks.resize_s=3", "rewards.services=slow.yaml")
    with RayNodes(tmp_path, shell()) as nodes:
        nodes.add("trainer-1", trainer=1)
        nodes.add("rewards-1", rewards=2)
        job, config = submitted(nodes, tree, tmp_path / "run", *options)
        wait_until(job, lambda: updates(config) >= 3)
        nodes.add("trainer-2", trainer=1)
        wait_until(job, lambda: nodes.pids("trainer-2", "RayTrainWorker"))
        begun = updates(config)
        wait_until(job, lambda: updates(config) >= begun + 2)
        nodes.kill("trainer-2")
        check_end(job, config, undisturbed)
