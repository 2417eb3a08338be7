"""Search over first noises: best of N, and zero-order search (Ma et al., arXiv 2501.09732, section 3.2)."""

import torch

from trainer.search.searcher import BATCH, Searcher

NEIGHBOURS = 4
"""Noises tried around the pivot in a round."""
RADIUS = 0.3
"""How far a neighbour lies from the pivot, as the share of its variance that is new."""


def best_of_n(searcher: Searcher) -> None:
    """Draw as many pictures as the budget pays for: the paper's random search."""
    while count := min(BATCH, searcher.affordable // searcher.steps):
        latents = searcher.denoise(searcher.noise(count), eta=searcher.sampling.eta)
        searcher.judge(latents, finished=True)


def zero_order(searcher: Searcher) -> None:
    """Move a first noise to the best of its neighbours, round by round.

    Deviation: the paper's neighbours lie on a sphere around the pivot; here they are mixed with new noise and
    so stay noises of the model's kind. A pivot is left only for a better one.
    """
    pivot = searcher.noise(1)
    best = searcher.judge(searcher.denoise(pivot), finished=True).max()
    while count := min(NEIGHBOURS, searcher.affordable // searcher.steps):
        neighbours = (1 - RADIUS) ** 0.5 * pivot + RADIUS**0.5 * searcher.noise(count)
        scores = searcher.judge(searcher.denoise(neighbours), finished=True)
        if bool(scores.max() > best):
            best, pivot = scores.max(), neighbours[torch.argmax(scores)][None]
