"""The two objectives of Diffusion-Sharpening (arXiv 2502.12146) on the branches that were selected.

SFT-Sharpening (equation 9) is the weighted path loss with one-hot weights; RLHF-Sharpening (equation 11) is
the preference loss on the best and the worst branch. Both read denoising errors, the mean squared difference
between a model's output at a visited state and what it should have said for the branch to end where it did:
the policy's log probability of a branch is, up to a constant, minus its weighted sum of errors
(Diffusion-DPO, arXiv 2311.12908). Shapes: B branches, S replayed states of each, N = B * S.
"""

from torch import Tensor
from torch.nn import functional


def denoising_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each replayed state: (N, C, h, w) twice to (N,)."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
    return functional.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)


def path_loss(errors_BS: Tensor, weights_B: Tensor) -> Tensor:
    """SFT-Sharpening: each branch's mean error over its replayed states, weighted and summed to a scalar.

    Args:
        errors_BS: (B, S) denoising errors.
        weights_B: (B,) share of each branch.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_rows(errors_BS, weights_B)
    return (weights_B * errors_BS.mean(1)).sum()


def preference_loss(
    best_BS: Tensor, worst_BS: Tensor, gaps_B: Tensor, weights_B: Tensor, *, beta: float, margin: str
) -> Tensor:
    """RLHF-Sharpening: minus log sigmoid of how far the policy, more than the reference, prefers the best.

    Args:
        best_BS, worst_BS: (B, S) log-ratios of policy to reference, reference error less policy error, at the
            replayed states of a prompt's best and worst branch.
        gaps_B: (B,) return of the best branch less that of the worst.
        weights_B: (B,) share of each pair in the sum that is returned.
        beta: strength of the preference.
        margin: `inside` subtracts the gap within the sigmoid, as equation 11 prints it, so that pairs further
            apart must be told further apart; `none` is Diffusion-DPO. The authors' code subtracts it outside,
            where it has no gradient.

    Raises:
        ValueError: another margin, or shapes that do not fit.
    """
    if margin not in ("inside", "none"):
        raise ValueError(f"margin is {margin!r}; use inside or none")
    for values in (worst_BS[:, 0], gaps_B, weights_B):
        _check_rows(best_BS, values)
    logits_B = beta * (best_BS.mean(1) - worst_BS.mean(1)) - (gaps_B if margin == "inside" else 0.0)
    return -(weights_B * functional.logsigmoid(logits_B)).sum()


def _check_rows(rows_BS: Tensor, values_B: Tensor) -> None:
    if values_B.shape != rows_BS.shape[:1]:
        raise ValueError(
            f"one value for each branch: expected shape {tuple(rows_BS.shape[:1])}, "
            f"got {tuple(values_B.shape)}"
        )
