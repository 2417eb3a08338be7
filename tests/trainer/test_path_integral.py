"""Combining, integrating and selecting, worked by hand on two prompts, two branches and two steps."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from trainer.path_integral import (
    Selection,
    centred,
    combine,
    ends,
    path_returns,
    select,
    spreads,
    temperatures_for,
)

NAN = math.nan
CLIP = torch.tensor([[[1.0, 3.0], [2.0, 4.0]], [[0.0, 0.0], [-1.0, 5.0]]])
JPEG = torch.tensor([[[10.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])


def chosen(returns: list[list[float]], temperature: float = 0.0) -> Selection:
    return select(torch.tensor(returns), temperature=temperature)


def test_rewards_are_added_by_weight() -> None:
    # 2 * clip - 0.5 * jpeg
    combined = combine({"clip": CLIP, "jpeg": JPEG, "unused": CLIP}, {"clip": 2.0, "jpeg": -0.5})
    assert combined.tolist() == [[[-3.0, 6.0], [4.0, 8.0]], [[-0.5, -0.5], [-2.5, 9.5]]]


def test_a_failed_part_makes_the_sum_fail_there_alone() -> None:
    broken = JPEG.clone()
    broken[0, 1, 0] = NAN
    combined = combine({"clip": CLIP, "jpeg": broken}, {"clip": 1.0, "jpeg": 0.0})
    assert combined.isnan().nonzero().tolist() == [[0, 1, 0]]


def test_a_weighted_reward_without_scores_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scores of hps, pick; scored were clip"):
        combine({"clip": CLIP}, {"pick": 1.0, "clip": 1.0, "hps": 1.0})
    with pytest.raises(ValueError, match="scored were none"):
        combine({}, {"clip": 1.0})


def test_scores_of_different_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="one shape"):
        combine({"clip": CLIP, "jpeg": JPEG[:, :, :1]}, {"clip": 1.0, "jpeg": 1.0})


def test_the_return_is_the_mean_of_the_steps() -> None:
    assert path_returns(CLIP).tolist() == [[2.0, 3.0], [0.0, 2.0]]


def test_a_failed_step_fails_the_branch() -> None:
    broken = CLIP.clone()
    broken[1, 0, 0] = NAN
    assert path_returns(broken).isnan().tolist() == [[False, False], [True, False]]


def test_returns_need_prompts_branches_and_steps() -> None:
    with pytest.raises(ValueError, match=r"\(P, K, T\), not \(2, 2\)"):
        path_returns(CLIP[0])


def test_temperature_0_takes_the_best_branch() -> None:
    selection = chosen([[2.0, 3.0, 1.0], [0.5, -2.0, 0.0]])
    assert selection.best_P.tolist() == [1, 0]
    assert selection.worst_P.tolist() == [2, 1]
    assert selection.weights_PK.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert selection.valid_P.tolist() == [True, True]
    assert selection.gaps(selection.best_P, selection.worst_P).tolist() == [2.0, 2.5]
    assert selection.effective_sample_size_P.tolist() == [1.0, 1.0]


def test_weights_are_exponential_in_the_return() -> None:
    # exp(log 4 / 2) = 2 and exp(0) = 1: weights 2/3 and 1/3, effective size 1 / (4/9 + 1/9) = 9/5.
    selection = chosen([[math.log(4), 0.0]], temperature=2.0)
    assert selection.weights_PK[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert selection.effective_sample_size_P.tolist() == pytest.approx([1.8])
    assert selection.best_P.tolist() == [0]


def test_only_differences_of_returns_matter() -> None:
    torch.testing.assert_close(chosen([[1e4 + 1, 1e4]], 1.0).weights_PK, chosen([[1.0, 0.0]], 1.0).weights_PK)


@pytest.mark.parametrize("temperature", [1e-6, 1e-42])
def test_a_vanishing_temperature_is_temperature_0(temperature: float) -> None:
    returns = [[2.0, 3.0, 1.0], [0.5, NAN, 0.0]]
    assert chosen(returns, temperature).weights_PK.tolist() == chosen(returns).weights_PK.tolist()


def test_a_boundless_temperature_weighs_all_branches_alike() -> None:
    selection = chosen([[2.0, 3.0, 1.0, 0.0], [0.5, NAN, 0.0, 9.0]], temperature=1e9)
    assert selection.effective_sample_size_P.tolist() == pytest.approx([4.0, 3.0])
    assert selection.weights_PK[1, 1] == 0


def test_the_effective_size_grows_with_the_temperature() -> None:
    sizes = [float(chosen([[2.0, 3.0, 1.0]], t).effective_sample_size_P) for t in (0.0, 0.1, 0.5, 2.0, 10.0)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("wanted", [1.5, 2.0, 2.9])
def test_a_temperature_is_found_for_an_effective_size(scale: float, wanted: float) -> None:
    returns = torch.tensor([[2.0, 3.0, 1.0, NAN], [0.5, -2.0, 0.0, 7.0]]) * scale
    selection = select(returns, temperature=temperatures_for(returns, wanted))
    assert selection.effective_sample_size_P.tolist() == pytest.approx([wanted, wanted], rel=1e-3)
    assert (selection.weights_PK.argmax(1) == selection.best_P).all()


def test_the_temperature_of_two_branches_by_hand() -> None:
    # Weights 2/3 and 1/3 amount to 1.8 branches: exp(gap / temperature) = 2.
    assert float(temperatures_for(torch.tensor([[5.0, 3.0]]), 1.8)) == pytest.approx(
        2 / math.log(2), rel=1e-3
    )


def test_what_cannot_be_weighed_has_a_temperature_all_the_same() -> None:
    # Two equal winners amount to two; one branch, none, or equal ones to what they are.
    returns = torch.tensor([[4.0, 4.0, 0.0], [1.0, NAN, NAN], [NAN, NAN, NAN], [2.0, 2.0, 2.0]])
    temperatures = temperatures_for(returns, 1.2)
    assert (temperatures > 0).all()
    assert temperatures.isfinite().all()
    selection = select(returns, temperature=temperatures)
    assert selection.effective_sample_size_P.tolist() == pytest.approx([2.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="one branch or more, not"):
        temperatures_for(returns, 0.5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_dropped_branch_is_neither_best_nor_worst(temperature: float) -> None:
    selection = chosen([[NAN, 3.0, 1.0], [5.0, NAN, 7.0]], temperature)
    assert selection.best_P.tolist() == [1, 2]
    assert selection.worst_P.tolist() == [2, 0]
    assert selection.weights_PK[0, 0] == selection.weights_PK[1, 1] == 0
    assert selection.weights_PK.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert selection.gaps(selection.best_P, selection.worst_P).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("returns", [[NAN, NAN, NAN], [NAN, 2.0, NAN], [2.0, 2.0, 2.0], [2.0, NAN, 2.0]])
def test_a_prompt_with_nothing_to_compare_teaches_nothing(returns: list[float], temperature: float) -> None:
    selection = chosen([returns, [0.0, 1.0, 2.0]], temperature)
    assert selection.valid_P.tolist() == [False, True]
    assert selection.weights_PK[0].tolist() == [0, 0, 0]
    assert selection.weights_PK[1].sum() == pytest.approx(1.0)
    assert selection.effective_sample_size_P[0] == 0
    assert selection.gaps(selection.best_P, selection.worst_P).tolist() == [0.0, 2.0]


def test_what_selection_cannot_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="must not be negative, is -1"):
        chosen([[0.0, 1.0]], temperature=-1)
    with pytest.raises(ValueError, match="by is 'chance'; use reward or random"):
        select(CLIP[0], temperature=0, by="chance")
    with pytest.raises(ValueError, match="is longer than argument 1"):
        select(torch.zeros(1, 2), temperature=0, by="random", generators=[torch.Generator()] * 2)


def drawn(returns_PK: Tensor, seed: int) -> Selection:
    generators = [torch.Generator().manual_seed(1000 * seed + row) for row in range(len(returns_PK))]
    return select(returns_PK, temperature=0.0, by="random", generators=generators)


def test_the_control_deals_the_same_returns_anew() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN], [-5.0, 0.0, 5.0, 9.0]])
    selection = drawn(returns, 0)
    assert selection.returns_PK.sort(1).values.tolist()[1] == [-5.0, 0.0, 5.0, 9.0]
    assert selection.returns_PK.sort(1).values.tolist()[0][:3] == [1.0, 2.0, 3.0]
    assert selection.returns_PK.isnan().sum(1).tolist() == [1, 0]
    assert selection.gaps(selection.best_P, selection.worst_P).tolist() == [2.0, 14.0]
    assert selection.returns_PK.gather(1, selection.best_P[:, None]).tolist() == [[3.0], [9.0]]


def test_the_control_does_not_know_which_branch_was_good() -> None:
    # 400 draws: each of 4 branches wins 100 times, with a standard deviation of sqrt(400 * 3) / 4 = 8.7.
    returns = torch.arange(4.0).expand(400, 4)
    selection = drawn(returns, 1)
    for chosen_P in (selection.best_P, selection.worst_P):
        assert all(60 < count < 140 for count in torch.bincount(chosen_P, minlength=4).tolist())
    assert not (selection.best_P == selection.worst_P).any()


def test_the_control_repeats_with_its_seed() -> None:
    returns = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert drawn(returns, 3).best_P.tolist() == drawn(returns, 3).best_P.tolist()
    assert drawn(returns, 3).best_P.tolist() != drawn(returns, 4).best_P.tolist()


def test_centred_returns_and_their_spread_by_hand() -> None:
    # 1, 2 and 6 around 3: -2, -1, 3, whose squares add up to 14; 4 and 8 around 6 where one was dropped.
    returns = torch.tensor([[1.0, 2.0, 6.0], [4.0, math.nan, 8.0]])
    assert centred(returns).tolist() == [[-2.0, -1.0, 3.0], [-2.0, 0.0, 2.0]]
    assert spreads(returns).tolist() == pytest.approx([math.sqrt(14 / 3), 2.0])
    lost = torch.full((1, 3), math.nan)
    assert centred(lost).tolist() == [[0.0, 0.0, 0.0]]
    assert float(spreads(lost)) > 0


@pytest.mark.parametrize(
    ("returns", "highest", "lowest", "expected"),
    [
        ([3.0, 1.0, 4.0, 2.0, 5.0], 2, 0, [2, 4]),
        ([3.0, 1.0, 4.0, 2.0, 5.0], 2, 1, [1, 2, 4]),
        ([3.0, NAN, 4.0, 2.0, 5.0], 2, 1, [2, 3, 4]),
        ([3.0, NAN, 4.0, NAN, 5.0], 2, 1, [0, 2, 4]),
        ([NAN, NAN, 4.0, NAN, 5.0], 2, 1, [2, 3, 4]),  # too few have a return
        ([NAN, NAN, NAN], 1, 1, [0, 2]),
        ([1.0, 1.0, 1.0], 2, 0, [0, 1]),
    ],
    ids=str,
)
def test_the_ends_of_a_ranking_leave_out_what_failed(
    returns: list[float], highest: int, lowest: int, expected: list[int]
) -> None:
    assert ends(torch.tensor([returns]), highest=highest, lowest=lowest).tolist() == [expected]


def pairs_of(selection: Selection, draws: int = 4000) -> list[tuple[int, int]]:
    """The branches of the first prompt that are compared, in so many draws."""
    chances = torch.rand(draws, 2, generator=torch.Generator().manual_seed(0))
    firsts = Selection(*(value[:1].expand(draws, *value.shape[1:]) for value in fields_of(selection)))
    winners, losers = firsts.pairs(chances)
    return list(zip(winners.tolist(), losers.tolist(), strict=True))


def fields_of(selection: Selection) -> list[torch.Tensor]:
    return [getattr(selection, field.name) for field in dataclasses.fields(selection)]


def test_at_temperature_0_the_best_is_compared_with_the_worst() -> None:
    assert set(pairs_of(chosen([[2.0, 9.0, -1.0, NAN]]))) == {(1, 2)}


def test_above_it_pairs_are_drawn_by_their_weights() -> None:
    # Winners weigh 4 : 2 : 1, losers 1 : 2 : 4 (exp of log 4, log 2 and 0, and their inverses), a branch
    # without a return nothing: that they are 0 and 2 has the chance 4/7 4/7, and turned round 1/7 1/7 more.
    pairs = pairs_of(chosen([[math.log(4), math.log(2), 0.0, NAN]], temperature=1.0))
    assert {branch for pair in pairs for branch in pair} == {0, 1, 2}
    assert all(winner <= loser for winner, loser in pairs)
    assert pairs.count((0, 2)) / len(pairs) == pytest.approx(17 / 49, abs=0.03)
    assert pairs.count((0, 1)) / len(pairs) == pytest.approx((4 * 2 + 2 * 1) / 49, abs=0.03)
    assert pairs.count((1, 1)) / len(pairs) == pytest.approx(2 * 2 / 49, abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_last_chance_draws_no_branch_without_a_return(temperature: float) -> None:
    selection = chosen([[1.0, 3.0, NAN], [NAN, NAN, 2.0]], temperature)
    almost = torch.full((2, 2), 1 - 2**-24)
    winners, losers = selection.pairs(almost)
    assert winners[0] == 1
    assert losers[0] in (0, 1)
    assert selection.gaps(winners, losers)[1] == 0  # dropped
