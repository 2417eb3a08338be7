"""RAY. Which rank is blamed: the one that died, not those that lost their connection to it."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray
import ray.train.torch
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.config import RunConfig, ScalingConfig

from trainer.driver import RunFailed
from trainer.rank_group import Trainer, fit, to_blame

# Ray leaves sockets and files of its processes to the garbage collector, and ray.data warns of itself.
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::FutureWarning", "default::DeprecationWarning"
)

LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
LOST_BY_NCCL = RuntimeError("NCCL error in ProcessGroupNCCL.cpp:1: remote process exited")
DIED = WorkerHealthCheckFailedError("it does not answer", failure=ActorDiedError())
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ({0: LOST, 1: DIED}, 1),
        ({0: FULL, 1: DIED, 2: DIED}, 1),
        ({0: LOST, 1: LOST_BY_NCCL, 2: FULL}, 2),
        ({2: LOST, 1: LOST}, 1),
        ({3: FULL, 1: FULL}, 1),
    ],
)
def test_who_is_to_blame(failures: Mapping[int, Exception], rank: int) -> None:
    assert to_blame(failures) == (rank, failures[rank])


@pytest.fixture
def two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """Two ranks; the second is killed, as the kernel does it out of memory, while the first waits for it."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def sum_until_killed() -> None:
        import torch.distributed as dist
        from torch import zeros

        for _ in range(3):
            dist.all_reduce(zeros(1))
        if dist.get_rank() == 1:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(zeros(1))

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield Trainer(
        sum_until_killed,
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(name="killed", storage_path=str(tmp_path)),
    )
    ray.shutdown()


def test_a_killed_rank_is_named_and_not_who_waited_for_it(two_ranks: Trainer) -> None:
    with pytest.raises(RunFailed, match=r"^rank 1 failed, after 0 restarts too: .*worker process has died"):
        fit(two_ranks, restarts=0)
