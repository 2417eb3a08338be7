"""Search over paths (Ma et al., arXiv 2501.09732, section 3.2): on from the best, back a little, again."""

from torch import Tensor

from trainer.search.searcher import Searcher

BACK, FORTH = 1, 3
"""Steps by which survivors are noised again, and steps they then take."""
VARIANTS = 2
"""Ways in which each survivor is noised again."""


def over_paths(searcher: Searcher) -> None:
    """As many paths as the budget pays for; at each stop the better ones of them go on.

    N paths go to the first stop; from each stop N / VARIANTS survivors are noised back BACK steps in VARIANTS
    ways each and go FORTH steps, which ends at the next stop, where their x0 estimates are judged.
    """
    steps = searcher.steps
    stops = range(FORTH, steps, FORTH - BACK)
    cost = cost_of_path(steps)
    survivors = searcher.affordable // cost // VARIANTS
    place = min(FORTH, steps)
    states = searcher.denoise(searcher.noise(survivors * VARIANTS), last=place)
    for stop in stops:
        best = _best(searcher, states, stop, survivors).repeat_interleave(VARIANTS, 0)
        place = min(stop - BACK + FORTH, steps)
        states = searcher.denoise(_noised(searcher, best, stop), stop - BACK, last=place)
    searcher.judge(searcher.denoise(states, place), finished=True)


def least(steps: int) -> int:
    """Steps of the smallest search: one survivor's variants."""
    return VARIANTS * cost_of_path(steps)


def cost_of_path(steps: int) -> int:
    """Evaluations of one path: its steps, those taken again, and one at each stop to see where it leads."""
    stops = range(FORTH, steps, FORTH - BACK)
    return steps + len(stops) * (BACK + 1)


def _best(searcher: Searcher, states: Tensor, j: int, count: int) -> Tensor:
    return states[searcher.judge(searcher.estimate(states, j), finished=False).topk(count).indices]


def _noised(searcher: Searcher, states: Tensor, j: int) -> Tensor:
    """States before step j as they may have been BACK steps earlier: the forward process between levels."""
    late, early = searcher.schedule.levels_T[j], searcher.schedule.levels_T[j - BACK]
    kept = early.signal / late.signal
    fresh = (early.noise**2 - (kept * late.noise) ** 2).clamp(min=0).sqrt()
    return kept * states + fresh * searcher.noise(len(states))
