"""The cost panel: times that add up, figures for people, medians of updates, which devices are meant."""

from typing import Any

import pytest

from trainer.cost_panel import Cost, costs, device_note, times

SUMMARY: dict[str, Any] = {
    "wall_s": 300.0,
    "sampling_s": 120.0,
    "learning_s": 100.0,
    "evaluation_s": 30.0,
    "unet_evaluations": 1234567,
    "cache_hits": 0,
    "images_per_second": 12.345,
    "stall_fraction": 0.1,
    "learning_peak_bytes": 3 * 2**30,
}


def test_times_add_up_to_the_wall_clock() -> None:
    label, rest_s = times(SUMMARY)[-1]
    assert label == "everything else"
    assert rest_s == pytest.approx(50.0)
    assert sum(seconds for _, seconds in times(SUMMARY)) == pytest.approx(300.0)
    assert times({"wall_s": 3.0}) == []


def test_costs_are_of_the_run_and_a_median_update() -> None:
    metrics: list[dict[str, Any]] = [
        {"update": 1, "sampling_s": 1.0, "evaluation_s": 9.0, "unet_evaluations": 2000},
        {"update": 2, "sampling_s": 9.0, "unet_evaluations": 3000, "cache_hits": None},
        {"update": 3, "sampling_s": 2.0, "evaluation_s": 0.0, "unet_evaluations": 4000},
    ]
    found = costs(SUMMARY, metrics)
    assert found == [
        Cost("sampling", "120.0 s", "2 s", "40.0 %"),
        Cost("learning", "100.0 s", None, "33.3 %"),
        Cost("evaluation", "30.0 s", None, "10.0 %"),
        Cost("share of updates spent waiting for rewards", "10.0 %", None),
        Cost("UNet evaluations", "1\u202f234\u202f567", "3\u202f000"),
        Cost("images per second of training", "12.3", None),
        Cost("scores that were known already", "0", None),
        Cost("a rank's peak memory while learning", "3.00 GiB", None),
    ]
    assert costs({}, metrics) == []


def test_the_note_says_which_devices_are_meant() -> None:
    known = {"devices": 6.0, "device": "GPU", "reward_devices": 4.0}
    assert device_note(known) == "Devices: 6 × GPU, 4 of them for the rewards."
    elsewhere = device_note({"devices": 1.5, "device": "CPU core", "reward_devices": None})
    assert elsewhere == (
        "Devices: 1.5 × CPU core of the ranks; the rewards run elsewhere on devices that are not known here."
    )
    assert device_note({}) is None
