"""Steering one noisy path by what its possible next steps promise: Demon and Free2Guide, without gradients.

At each step K noises are tried, the x0 estimate after each is judged, and the step is taken with a mixture of
the noises, scaled back to the length of a noise. The methods differ in how a score becomes a weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.search.searcher import Searcher


def demon(searcher: Searcher) -> None:
    """Demon (arXiv 2410.05760): weights tanh((score - mean) / spread), so that bad noises repel.

    Deviation: the spread of the scores at hand stands for the paper's temperature, and x0 is estimated in one
    evaluation where the paper may take more.
    """
    _steer(searcher, lambda scores: torch.tanh(_standardised(scores)))


def free2guide(searcher: Searcher) -> None:
    """Free2Guide (arXiv 2411.17041): path-integral control, weights proportional to exp(score / spread).

    Deviation: the paper guides some of the steps of video models by a language model's verdict; here every
    noisy step is guided, by the same rewards as everything else.
    """
    _steer(searcher, lambda scores: torch.softmax(_standardised(scores), 0))


def least(steps: int) -> int:
    """Steps of the smallest search: each of the path, and two x0 estimates after it."""
    return 3 * steps


def _steer(searcher: Searcher, weigh: Callable[[Tensor], Tensor]) -> None:
    eta = searcher.sampling.eta
    state = searcher.noise(1)
    for j in range(searcher.steps):
        mean, std = searcher.distribution(state, j, eta)
        # The steps still to come are paid first; what is left is shared among this and the later choices.
        to_come = searcher.steps - 1 - j
        count = (searcher.affordable - to_come) // to_come if to_come else 0
        if count < 2 or not bool(std > 0):
            state = mean + std * searcher.noise(1)
            continue
        noises = searcher.noise(count)
        clean = searcher.estimate(mean + std * noises, j + 1)
        weights = weigh(searcher.judge(clean, finished=False)).to(noises.device)
        mixed = (weights[:, None, None, None] * noises).sum(0, keepdim=True)
        state = mean + std * mixed * (noises[0].numel() ** 0.5 / mixed.norm().clamp(min=1e-12))
    searcher.judge(state, finished=True)


def _standardised(scores: Tensor) -> Tensor:
    """Scores around their mean in units of their spread; a failed one counts as the worst of the others.

    Ones where all are the same, so that noises still add up to one.
    """
    known = scores[scores.isfinite()]
    if len(known) == 0 or bool(known.min() == known.max()):
        return torch.ones_like(scores)
    filled = scores.nan_to_num(neginf=float(known.min()))
    return (filled - filled.mean()) / filled.std(correction=0).clamp(min=1e-6)
