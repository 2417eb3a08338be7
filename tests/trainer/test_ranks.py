"""Two processes over gloo do what one does over the whole batch; one rank alone changes nothing."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.ports import free_port
from trainer.ranks import Halted, Ranks


def parameters() -> list[torch.Tensor]:
    return [torch.zeros(2, 2, requires_grad=True), torch.zeros(3, requires_grad=True)]


def test_one_rank_is_the_identity() -> None:
    ranks = Ranks()
    weights, bias = parameters()
    weights.sum().backward()
    ranks.sum_gradients([weights, bias])
    assert weights.grad is not None
    assert weights.grad.tolist() == [[1, 1], [1, 1]]
    assert bias.grad is None
    assert ranks.is_main
    assert ranks.total(2.5) == 2.5
    assert ranks.agree(True)
    assert not ranks.agree(False)
    assert ranks.gather("a") == ["a"]
    assert ranks.any(None) is None
    assert ranks.any("trouble") == "trouble"


@pytest.mark.parametrize(("count", "shares"), [(6, [2, 2, 2]), (7, [2, 2, 3]), (3, [1, 1, 1])])
def test_shares_lie_end_to_end(count: int, shares: list[int]) -> None:
    things = list(range(count))
    dealt = [things[Ranks(rank, 3).share(count)] for rank in range(3)]
    assert [thing for share in dealt for thing in share] == things
    assert [len(share) for share in dealt] == shares


def test_an_error_of_a_named_kind_halts_in_one_line() -> None:
    with pytest.raises(Halted, match=r"^the disk is full$"), Ranks().together(OSError, KeyError):
        raise OSError("the disk\n  is full")
    with pytest.raises(Halted, match=r"^TimeoutError$"), Ranks().together(OSError):
        raise TimeoutError
    with pytest.raises(ZeroDivisionError), Ranks().together(OSError):
        raise ZeroDivisionError
    with Ranks().together(OSError):
        pass


def halting(ranks: Ranks) -> str:
    """What ends a block in which rank 1 fails."""
    try:
        with ranks.together(OSError):
            if ranks.rank == 1:
                raise OSError("only rank 1 failed")
    except Halted as halted:
        return str(halted)
    return "went on"


def report(rank: int, port: int, folder: Path) -> None:
    """One of two processes: does everything once and writes down what it saw."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    weights, bias = parameters()
    ((rank + 1) * weights.sum()).backward()
    if rank == 0:
        (7 * bias.sum()).backward()
    ranks.sum_gradients([weights, bias])
    idle = parameters()  # on rank 1 every prompt was dropped: it has no gradient at all
    if rank == 0:
        torch.cat([parameter.flatten() for parameter in idle]).sum().backward()
    ranks.sum_gradients(idle)
    seen = {
        "is_main": ranks.is_main,
        "gradients": [p.grad.tolist() for p in (weights, bias, *idle) if p.grad is not None],
        "total": ranks.total(rank + 0.5),
        "agree": [ranks.agree(rank == 0), ranks.agree(rank == 1), ranks.agree(True), ranks.agree(False)],
        "gather": ranks.gather({"rank": rank}),
        "any": [ranks.any(None), ranks.any("second" if rank else None), ranks.any(f"rank {rank}")],
        "halted": halting(ranks),
    }
    (folder / f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.destroy_process_group()


def test_two_ranks_act_as_one(tmp_path: Path) -> None:
    spawn(report, (free_port(), tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1))
    assert (first.pop("is_main"), second.pop("is_main")) == (True, False)
    assert first == second
    assert first == {
        "gradients": [[[3, 3], [3, 3]], [7, 7, 7], [[1, 1], [1, 1]], [1, 1, 1]],
        "total": 2.0,
        "agree": [True, False, True, False],
        "gather": [{"rank": 0}, {"rank": 1}],
        "any": [None, "second", "rank 0"],
        "halted": "only rank 1 failed",
    }
