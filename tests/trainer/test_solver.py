"""DPM-Solver++(2M) by hand: how far a step carries on; test_branches has trajectories by diffusers."""

import torch
from torch import Tensor

from trainer.diffusion import Level, Schedule
from trainer.solver import carries, step


def test_dpm_solver_carries_on_by_how_steps_grow() -> None:
    """log(signal / noise) before each of three steps is 0, 1 and 3, and the last one leaves no noise."""
    ratios = torch.tensor([0.0, 1.0, 3.0]).exp()
    noise = (1 + ratios**2).rsqrt()
    before = Level(ratios * noise, noise)
    after = Level(torch.cat([before.signal[1:], torch.ones(1)]), torch.cat([noise[1:], torch.zeros(1)]))
    schedule = Schedule(torch.tensor([2, 1, 0]), before, after, "epsilon")
    torch.testing.assert_close(carries(schedule), torch.tensor([0.0, 2 / (2 * 1), 0.0]))


def test_flow_matching_from_pure_noise_carries_on_finitely() -> None:
    schedule = Schedule.of_flow(torch.tensor([900.0, 600.0, 300.0]), torch.tensor([1.0, 0.6, 0.3, 0.0]))
    assert carries(schedule).tolist() == [0.0, 0.0, 0.0]  # the first step grows without end


def test_an_estimate_that_stands_still_makes_both_solvers_one() -> None:
    schedule = Schedule.of_flow(
        torch.tensor([900.0, 700.0, 400.0, 100.0]), torch.tensor([0.9, 0.7, 0.4, 0.1, 0.0])
    )
    generator = torch.Generator().manual_seed(0)
    sample, clean = torch.randn(2, 2, 1, 4, 4, generator=generator)
    output = (sample - clean) / schedule.levels_T.noise[2]  # what makes the estimate `clean`
    euler = step(schedule, 2, sample, output, eta=1.0)
    still = step(schedule, 2, sample, output, eta=1.0, earlier=clean)
    moving = step(schedule, 2, sample, output, eta=1.0, earlier=clean - 1)
    for of_euler, of_still in zip(euler, still, strict=True):
        torch.testing.assert_close(of_euler, of_still, atol=1e-5, rtol=1e-5)
    # What was one less a step ago is carried on by as much as the schedule says.
    shift = moving[1] - euler[1]
    level, following = schedule.levels_T[2], schedule.next_levels_T[2]
    carried = float(carries(schedule)[2]) * (following.signal - level.signal * _direction(level, following))
    torch.testing.assert_close(shift, torch.full_like(shift, float(carried)), atol=1e-5, rtol=1e-4)


def _direction(level: Level, following: Level) -> Tensor:
    """How much of the noise estimate ancestral sampling keeps, by the noise it was."""
    kept = following.noise**2 / level.noise * level.signal / following.signal
    return kept / level.noise
