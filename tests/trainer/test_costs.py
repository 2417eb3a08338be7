"""What a run spends is added up where it is spent, and over ranks."""

import mmap
import sys
import time

import pytest

from trainer.costs import Costs, Devices, budgeted, panel, peak_memory_bytes


def test_time_is_added_to_its_phase() -> None:
    costs = Costs()
    for _ in range(2):
        with costs.timed("learning_s"):
            time.sleep(0.02)
    assert 0.04 <= costs.learning_s < 1
    assert costs.sampling_s == costs.reward_stall_s == costs.evaluation_s == 0


def test_a_phase_that_fails_has_cost_its_time() -> None:
    costs = Costs()

    @costs.timed("reward_stall_s")
    def wait() -> None:
        time.sleep(0.01)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        wait()
    assert costs.reward_stall_s >= 0.01


def test_shares_of_the_time() -> None:
    costs = Costs(sampling_s=5, reward_stall_s=2, learning_s=1, evaluation_s=100)
    assert costs.training_s == 8
    assert costs.stall_fraction == 0.25
    assert Costs().stall_fraction == 0


def test_two_stretches_add_up() -> None:
    costs = Costs(sampling_s=5, unet_evaluations=10, reward_calls=3)
    assert costs + Costs(sampling_s=2, images_scored=7, reward_calls=1) == Costs(
        sampling_s=7, unet_evaluations=10, images_scored=7, reward_calls=4
    )
    assert costs + Costs() == costs


def test_ranks_spend_their_time_side_by_side_and_their_counts_together() -> None:
    total = Costs.of_ranks(
        [
            Costs(sampling_s=1, evaluation_s=4, unet_evaluations=10, images_scored=1),
            Costs(sampling_s=3, learning_s=2, unet_evaluations=20, images_scored=2),
        ]
    )
    assert total == Costs(sampling_s=2, learning_s=1, evaluation_s=2, unet_evaluations=30, images_scored=3)
    assert isinstance(total.unet_evaluations, int)
    assert isinstance(total.images_scored, int)


def test_peaks_are_the_highest_of_ranks_and_stretches() -> None:
    low, high = Costs(learning_peak_bytes=5, cache_hits=1), Costs(learning_peak_bytes=9, cache_hits=2)
    assert Costs.of_ranks([low, high]) == low + high == Costs(learning_peak_bytes=9, cache_hits=3)


def fill(size: int) -> None:
    """Take so much memory from the system for a moment; `b"x" * size` may get what the heap has left over."""
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_each_phase_has_its_own_peak() -> None:
    costs = Costs()
    with costs.timed("learning_s"):
        fill(96 * 2**20)
    with costs.timed("sampling_s"):
        pass
    with costs.timed("evaluation_s"):
        fill(48 * 2**20)
    assert costs.learning_peak_bytes - costs.sampling_peak_bytes > 64 * 2**20
    assert costs.sampling_peak_bytes < costs.evaluation_peak_bytes < costs.learning_peak_bytes
    assert costs.sampling_peak_bytes > 0


def test_peak_memory_is_in_bytes_and_only_grows() -> None:
    before = peak_memory_bytes()
    held = b"x" * (64 * 2**20)
    assert peak_memory_bytes() >= max(before, len(held))


def test_what_a_budget_may_limit() -> None:
    costs = Costs(sampling_s=1.0, reward_stall_s=2.0, learning_s=3.0, evaluation_s=9.0, unet_evaluations=7)
    assert budgeted(costs) == {"training_s": 6.0, "unet_evaluations": 7, "images_scored": 0}


def test_devices_are_gpus_or_where_there_are_none_cores() -> None:
    rank, judge, verifier = Devices(gpus=1, cpus=4), Devices(gpus=0.5, cpus=1), Devices(cpus=2)
    assert ((rank * 2 + judge).count, (rank * 2 + judge).kind) == (2.5, "GPU")
    assert ((rank + verifier).count, (rank + verifier).kind) == (1, "GPU")
    assert ((Devices(cpus=1) * 3 + verifier).count, verifier.kind) == (5, "CPU core")


def test_the_panel_counts_the_devices_of_rewards() -> None:
    """120 images in 10 s on 2 ranks with a GPU each and 4 for rewards: 2 a second for each of 6."""
    spent = Costs(sampling_s=5, decoding_s=2, reward_stall_s=1, learning_s=2, images_scored=120, cache_hits=7)
    figures = panel(spent, Devices(gpus=1) * 2 + Devices(gpus=4))
    assert (figures["images_per_second"], figures["images_per_second_per_device"]) == (12, 2)
    assert (figures["stall_fraction"], figures["cache_hits"], figures["images_scored"]) == (0.1, 7, 120)
    assert not {"images_given", "evaluation_s", "evaluation_peak_bytes"} & set(figures)
    assert panel(Costs(evaluation_s=3), Devices(cpus=1))["evaluation_s"] == 3


def test_given_pictures_have_a_speed_and_nothing_has_none() -> None:
    given = panel(Costs(learning_s=4, images_given=8), Devices(cpus=2))
    assert (given["images_given"], given["images_per_second"]) == (8, 2)
    assert given["images_per_second_per_device"] == 1
    for nothing in (Costs(), Costs(learning_s=4)):
        assert not [name for name in panel(nothing, Devices(cpus=1)) if "per_second" in name]
