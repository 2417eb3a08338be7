"""Search without training: better pictures of one prompt for more evaluations, by the method's name."""

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import SamplingConfig
from trainer.policy import Policy
from trainer.search import noises, paths, steering
from trainer.search.searcher import Found, Searcher

__all__ = ["SEARCHES", "Found", "Searcher", "check", "search"]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to spend a budget."""

    run: Callable[[Searcher], None]
    least: Callable[[int], int]
    """Steps of single states that its smallest search takes, by the steps of a picture."""
    smallest: str
    """What that search is of."""
    needs_noise: bool = False
    """Whether its steps must have noise."""


_STEERED = (steering.least, "two noises at each step", True)
SEARCHES = {
    "best_of_n": Method(noises.best_of_n, lambda steps: steps, "one picture"),
    "zero_order": Method(
        noises.zero_order,
        lambda steps: (1 + noises.NEIGHBOURS) * steps,
        f"a noise and {noises.NEIGHBOURS} neighbours",
    ),
    "over_paths": Method(paths.over_paths, paths.least, f"{paths.VARIANTS} paths"),
    "demon": Method(steering.demon, *_STEERED),
    "free2guide": Method(steering.free2guide, *_STEERED),
}


def check(method: str, policy: Policy, sampling: SamplingConfig, budget: int) -> None:
    """Raise ValueError where the budget, or steps without noise, do not suffice for the smallest search."""
    wanted = SEARCHES[method]
    if wanted.needs_noise and sampling.eta == 0:
        raise ValueError(f"{method} needs steps with noise: choose eta > 0")
    least = wanted.least(sampling.steps) * policy.evaluations(sampling.guidance)
    if budget < least:
        raise ValueError(
            f"a budget of {budget} evaluations is too small for {wanted.smallest}; give {least} or more"
        )


def search(method: str, searcher: Searcher) -> Found:
    """Spend the searcher's budget; returns the best finished picture it met.

    Raises:
        ValueError: as `check` says.
        RuntimeError: not one picture could be scored.
    """
    check(method, searcher.policy, searcher.sampling, searcher.budget)
    SEARCHES[method].run(searcher)
    return searcher.found()
