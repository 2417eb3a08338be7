"""Looked at before work starts: whether cluster and rewards answer, and have what a run asks them for."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from reward_services import RewardClient, RewardUnknown
from trainer.config import RanksConfig, RewardsConfig
from trainer.driver import RunFailed

_REACHABLE_S = 10.0
_RETRIES = 1
_ROUNDING = 1e-6


def check_reachable(address: str) -> None:
    """Raise RunFailed where no cluster answers; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or (address != "auto" and not port.isdigit()):
        raise RunFailed(
            f"{address!r} is no address of a cluster; write HOST:PORT, or send the command by ray job submit"
        )
    if address != "auto":
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE_S).close()
        except OSError as error:
            raise RunFailed(
                f"no Ray cluster answers at {address} ({error}); start one with ray start"
            ) from None


def check_served(rewards: RewardsConfig) -> None:
    """Ask rewards that run elsewhere for what they serve.

    Raises:
        RewardError: nobody answers there, or a reward is not among them.
    """
    if rewards.url is None:
        return
    with RewardClient(rewards.url, api_key=os.environ.get("REWARDS_API_KEY"), retries=_RETRIES) as client:
        check_names(rewards, rewards.url, [info.id for info in client.describe()])


def check_names(rewards: RewardsConfig, place: str | Path, served: Collection[str]) -> None:
    """Raise RewardUnknown where one is named that an address or a rewards.yaml does not serve."""
    for name in rewards.names:
        if name not in served:
            raise RewardUnknown(
                f"rewards names {name!r}, which {place} does not serve; it serves {', '.join(served)}"
            )


def check_room(
    there: Mapping[str, float],
    ranks: RanksConfig | None,
    rewards: Mapping[str, float],
    *,
    on_cpus: Sequence[str] = (),
    grows: bool,
) -> list[str]:
    """Compare what a cluster has with what the ranks and reward services of a run ask for.

    Args:
        there: the cluster's resources by Ray's names.
        ranks: None where none are started.
        rewards: resources of the reward services that are started with it.
        on_cpus: those of them that would compute on a GPU and reserve none.
        grows: whether the cluster may get more nodes: then the run may wait for them.

    Returns:
        Lines that somebody should read: what is missing, and GPUs that nothing would use.

    Raises:
        RunFailed: something is missing that will not come.
    """
    of_ranks, short = _of_ranks(ranks), []
    for name in sorted({*of_ranks, *rewards}):
        parts, have = (of_ranks.get(name, 0.0), rewards.get(name, 0.0)), there.get(name, 0.0)
        if sum(parts) > have + _ROUNDING:
            short.append(
                f"{sum(parts):g} {name} ({parts[0]:g} for ranks, {parts[1]:g} for rewards) of {have:g}"
            )
    if short and not grows:
        raise RunFailed(
            f"the run asks for {', '.join(short)}: set ranks.workers, ranks.cpus_per_worker, "
            "ranks.gpus_per_worker or the rewards' num_cpus, num_gpus and num_replicas lower"
        )
    notes = [f"The run asks for {', '.join(short)}, and waits for more nodes."] if short else []
    if ranks and there.get("GPU") and not ranks.gpus_per_worker:
        notes.append(
            f"The ranks train on CPUs though there is a GPU ({there['GPU']:g} in all): "
            "--set ranks.gpus_per_worker=1 takes one for each."
        )
    if on_cpus and there.get("GPU"):
        notes.append(
            f"Rewards compute on CPUs though there is a GPU ({there['GPU']:g} in all): {', '.join(on_cpus)}; "
            "num_gpus in rewards.services reserves one, or a part such as 0.2."
        )
    return notes


def _of_ranks(ranks: RanksConfig | None) -> dict[str, float]:
    """Of as many as can do."""
    if ranks is None:
        return {}
    return {
        name: (ranks.min_workers or ranks.workers) * amount
        for name, amount in ranks.resources_per_worker.items()
    }
