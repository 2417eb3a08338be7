"""From scores to the branches that are learned: combine rewards, integrate along the path, select.

Diffusion-Sharpening (arXiv 2502.12146) takes the branch with the largest summed reward, its equation 8. That
is the limit of path-integral control (Kappen 2005) at temperature 0: above 0 a branch weighs in proportion to
exp(return / temperature). Shapes: R rewards, P prompts, K branches of a prompt, T scored steps of a branch.
A score that failed is NaN on its way through this file and never becomes a number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLDEST, _HALVINGS = 1e-4, 40
"""Temperatures are looked for between this share of the returns' spread and its inverse; how finely."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a set of branches teaches."""

    returns_PK: Tensor
    """(P, K) path integrals; NaN for a branch that was dropped."""
    weights_PK: Tensor
    """(P, K) weights of the branches; they sum to 1, or to 0 for a dropped prompt."""
    losing_weights_PK: Tensor
    """(P, K) the same of returns turned round: how much each branch is one to avoid."""
    best_P: Tensor
    """(P,) index of the winner."""
    worst_P: Tensor
    """(P,) index of the loser."""
    valid_P: Tensor
    """(P,) bool: the prompt has at least two branches with a return, and they differ."""

    @property
    def centred_weights_PK(self) -> Tensor:
        """(P, K) weights less 1/K, over branches with a return: what all branches share weighs nothing."""
        known_PK = ~self.returns_PK.isnan() & self.valid_P[:, None]
        return self.weights_PK - known_PK / known_PK.sum(1, keepdim=True).clamp(min=1)

    @property
    def effective_sample_size_P(self) -> Tensor:
        """(P,) number of branches that the weights amount to: 1 / sum of squares; 0 for a dropped prompt."""
        squares = (self.weights_PK**2).sum(1)
        return torch.where(squares > 0, 1 / squares.clamp(min=1e-12), 0.0)

    def gaps(self, these_P: Tensor, those_P: Tensor) -> Tensor:
        """(P,) return of one branch of each prompt less that of another; 0 for a dropped prompt."""
        these, those = (self.returns_PK.gather(1, of_P[:, None])[:, 0] for of_P in (these_P, those_P))
        return torch.where(self.valid_P, these - those, 0.0)

    def pairs(self, chances_P2: Tensor) -> tuple[Tensor, Tensor]:
        """A better and a worse branch of each prompt, (P,) each, drawn by their weights.

        At temperature 0 they are the best and the worst. A pair that is drawn the wrong way round is turned.

        Args:
            chances_P2: uniform in [0, 1): one draws who wins, one who loses.
        """
        winners_P = _drawn(self.weights_PK, chances_P2[:, 0])
        losers_P = _drawn(self.losing_weights_PK, chances_P2[:, 1])
        turned_P = self.gaps(winners_P, losers_P) < 0
        return torch.where(turned_P, losers_P, winners_P), torch.where(turned_P, winners_P, losers_P)


def combine(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum over rewards: {reward: (P, K, T)} to (P, K, T). Any failed part makes the sum NaN.

    Raises:
        ValueError: a weighted reward has no scores, or shapes differ.
    """
    missing = sorted(set(weights) - set(scores))
    if missing:
        raise ValueError(
            f"no scores of {', '.join(missing)}; scored were {', '.join(sorted(scores)) or 'none'}"
        )
    if len({tuple(scores[name].shape) for name in weights}) != 1:
        raise ValueError("scores of different rewards must have one shape (P, K, T)")
    return torch.stack([weight * scores[name] for name, weight in weights.items()]).sum(0)


def path_returns(scores_PKT: Tensor) -> Tensor:
    """Integrate along the path: (P, K, T) to (P, K); every step weighs the same (equation 8).

    Raises:
        ValueError: the scores have another number of axes.
    """
    if scores_PKT.ndim != 3:
        raise ValueError(f"scores have shape (P, K, T), not {tuple(scores_PKT.shape)}")
    return scores_PKT.mean(2)


def temperatures_for(returns_PK: Tensor, branches: float) -> Tensor:
    """(P,) temperatures at which the weights of each prompt amount to so many branches.

    The effective sample size, 1 / sum of squared weights, grows with the temperature from 1 to the number of
    branches, so that it is found by bisection. Where returns are equal or fewer, the nearest there is.

    Raises:
        ValueError: fewer than one branch.
    """
    if branches < 1:
        raise ValueError(f"weights amount to one branch or more, not {branches}")
    spread_P1 = spreads(returns_PK)[:, None]
    relative_PK = returns_PK.nan_to_num(-torch.inf)
    relative_PK = (relative_PK - relative_PK.amax(1, keepdim=True)).nan_to_num(0.0, neginf=-torch.inf)
    low_P1, high_P1 = spread_P1.log() + math.log(_COLDEST), spread_P1.log() - math.log(_COLDEST)
    for _ in range(_HALVINGS):
        middle_P1 = (low_P1 + high_P1) / 2
        weights_PK = torch.softmax(relative_PK / middle_P1.exp(), dim=1)
        too_many_P1 = 1 / weights_PK.square().sum(1, keepdim=True) > branches
        low_P1 = torch.where(too_many_P1, low_P1, middle_P1)
        high_P1 = torch.where(too_many_P1, middle_P1, high_P1)
    return low_P1.exp()[:, 0]


def select(
    returns_PK: Tensor,
    *,
    temperature: float | Tensor,
    by: str = "reward",
    generators: Sequence[torch.Generator] = (),
) -> Selection:
    """Choose branches.

    Args:
        returns_PK: (P, K); NaN drops the branch.
        temperature: 0 takes the best branch; above 0 weights are proportional to exp(return / temperature).
            One for all prompts, or (P,) above 0.
        by: `reward`, or `random` for the no-reward control: the same returns, dealt anew among a prompt's
            branches, so that everything but the cause of the choice stays the same.
        generators: sources of the control's randomness, one a prompt: whose deal is the same beside others.

    Raises:
        ValueError: a negative temperature, another way to choose, or a number of generators that is not P.
    """
    temperatures_P1 = torch.as_tensor(temperature, dtype=returns_PK.dtype).reshape(-1, 1)
    if (temperatures_P1 < 0).any():
        raise ValueError(f"temperature must not be negative, is {temperature}")
    if by not in ("reward", "random"):
        raise ValueError(f"by is {by!r}; use reward or random")
    dealt_PK = _dealt(returns_PK, generators) if by == "random" else returns_PK
    known_PK = ~dealt_PK.isnan()
    high_PK = dealt_PK.masked_fill(~known_PK, -torch.inf)
    low_PK = dealt_PK.masked_fill(~known_PK, torch.inf)
    best_P, worst_P = high_PK.argmax(1), low_PK.argmin(1)
    # Never so where one branch or none has a return.
    valid_P = high_PK.amax(1) > low_PK.amin(1)
    winning_PK, losing_PK = (_weights(of_PK, valid_P, temperatures_P1) for of_PK in (high_PK, -low_PK))
    return Selection(dealt_PK, winning_PK, losing_PK, best_P, worst_P, valid_P)


def ends(returns_PK: Tensor, *, highest: int, lowest: int) -> Tensor:
    """(P, highest + lowest) long: the branches at the ends of each prompt's ranking, by their index.

    A branch without a return is among them only where too few have one.
    """
    unknown_PK, places_K = returns_PK.isnan(), torch.arange(returns_PK.shape[1])
    falling_PK = returns_PK.masked_fill(unknown_PK, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # What has no return moves between those that may win and those that may lose.
    behind_PK = (places_K >= highest) & ~unknown_PK.gather(1, falling_PK)
    ranked_PK = falling_PK.gather(1, (places_K + len(places_K) * behind_PK).argsort(1))
    of_both = ranked_PK[:, :highest], ranked_PK[:, len(places_K) - lowest :]
    return torch.cat(of_both, 1).sort(1).values


def centred(returns_PK: Tensor) -> Tensor:
    """(P, K) returns less the mean of their prompt's; 0 for a branch that was dropped."""
    return (returns_PK - returns_PK.nanmean(1, keepdim=True)).nan_to_num(0.0)


def spreads(returns_PK: Tensor) -> Tensor:
    """(P,) standard deviation of each prompt's returns, dropped branches left out; never quite 0."""
    known_P = (~returns_PK.isnan()).sum(1).clamp(min=1)
    return (centred(returns_PK).square().sum(1) / known_P).sqrt().clamp(min=1e-6)


def _weights(returns_PK: Tensor, valid_P: Tensor, temperatures_P1: Tensor) -> Tensor:
    """(P, K) in proportion to exp(return / temperature); 0 for a dropped prompt."""
    if (temperatures_P1 == 0).all():
        best_P = returns_PK.argmax(1)
        weights_PK = torch.nn.functional.one_hot(best_P, returns_PK.shape[1]).to(returns_PK.dtype)
    else:
        relative_PK = returns_PK - returns_PK.amax(1, keepdim=True)
        weights_PK = torch.softmax(torch.where(valid_P[:, None], relative_PK / temperatures_P1, 0.0), dim=1)
    return weights_PK * valid_P[:, None]


def _drawn(weights_PK: Tensor, chances_P: Tensor) -> Tensor:
    """(P,) one branch of each prompt, by where its chance falls in the sum of weights."""
    sums_PK = weights_PK.cumsum(1)
    places_P1 = torch.searchsorted(sums_PK, sums_PK[:, -1:] * chances_P[:, None], right=True)
    return places_P1[:, 0].clamp(max=weights_PK.shape[1] - 1)


def _dealt(returns_PK: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Each prompt's returns shuffled among its branches."""
    dealt = [
        returns_K[torch.rand(len(returns_K), generator=generator).argsort()]
        for returns_K, generator in zip(returns_PK, generators, strict=True)
    ]
    return torch.stack(dealt)
