"""What cannot be had is said before minutes are waited for it, and so is a GPU that would idle."""

import pytest

from trainer.config import RanksConfig
from trainer.driver import RunFailed
from trainer.preflight import check_reachable, check_room

REWARDS = {"CPU": 2.5, "GPU": 0.25}
MACHINE = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}


def test_what_fits_is_not_spoken_of() -> None:
    ranks = RanksConfig(cpus_per_worker=1.5, gpus_per_worker=0.75)
    assert check_room(MACHINE, ranks, REWARDS, grows=False) == []
    assert check_room(MACHINE, None, REWARDS, grows=False) == []
    assert check_room({"CPU": 2.0}, RanksConfig(workers=2), {}, grows=False) == []


def test_what_can_never_be_had_is_refused() -> None:
    ranks = RanksConfig(workers=2, cpus_per_worker=1, gpus_per_worker=1, resources={"trainer": 1})
    with pytest.raises(RunFailed, match=r"asks for 4\.5 CPU") as refused:
        check_room(MACHINE, ranks, REWARDS, grows=False)
    message = str(refused.value)
    assert (
        "4.5 CPU (2 for ranks, 2.5 for rewards) of 4, 2.25 GPU (2 for ranks, 0.25 for rewards) of 1"
        in message
    )
    assert "2 trainer (2 for ranks, 0 for rewards) of 0: set ranks.workers" in message


def test_a_cluster_that_may_grow_is_waited_for_and_fewer_ranks_may_do() -> None:
    ranks = RanksConfig(workers=4, gpus_per_worker=1)
    (note,) = check_room(MACHINE, ranks, {}, grows=True)
    assert note == "The run asks for 4 GPU (4 for ranks, 0 for rewards) of 1, and waits for more nodes."
    fewer = ranks.model_copy(update={"min_workers": 1})
    assert check_room(MACHINE, fewer, {}, grows=True) == []


def test_a_gpu_that_would_idle_is_named() -> None:
    (note,) = check_room(MACHINE, RanksConfig(), {}, grows=False)
    assert "train on CPUs though there is a GPU (1 in all): --set ranks.gpus_per_worker=1" in note
    assert check_room(MACHINE, None, {}, grows=False) == []


def test_a_cluster_that_does_not_answer_is_a_line() -> None:
    with pytest.raises(RunFailed, match="no Ray cluster answers"):
        check_reachable("127.0.0.1:1")
    with pytest.raises(RunFailed, match="is no address of a cluster; write HOST:PORT"):
        check_reachable("ray://head:10001")
