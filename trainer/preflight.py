"""Looked at before work starts: whether cluster and rewards answer, and have what a run asks them for."""

import os
import socket
from collections.abc import Mapping, Sequence

from reward_services import RewardClient, RewardUnknown
from reward_services.config import ServicesConfig, lacking
from reward_services.config_file import load_config as load_services
from trainer.config import RanksConfig, RewardsConfig
from trainer.driver import RunFailed

_REACHABLE_S = 10.0
_RETRIES = 1


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


def check_served(rewards: RewardsConfig) -> ServicesConfig | None:
    """Look into a rewards.yaml, or ask rewards that run elsewhere, for what they serve.

    Returns:
        What the rewards.yaml says; None without one.

    Raises:
        RewardError: the file cannot be used, nobody answers there, or a reward is not among them.
    """
    services = load_services(rewards.services) if rewards.services is not None else None
    if services is not None and (missing := [name for name in rewards.names if name not in services.rewards]):
        raise RewardUnknown(
            f"rewards names {missing[0]!r}, which {rewards.services} does not serve; "
            f"it serves {', '.join(services.rewards)}"
        )
    if rewards.url is not None:
        key = os.environ.get("REWARDS_API_KEY")
        with RewardClient(rewards.url, api_key=key, retries=_RETRIES) as client:
            try:
                client.describe(rewards.names)  # of these alone: others may be out of order
            except RewardUnknown as error:
                raise RewardUnknown(f"{rewards.url}: {error}") from None
    return services


def check_room(
    there: Mapping[str, float],
    ranks: Sequence[RanksConfig],
    rewards: Mapping[str, float],
    *,
    at_once: int = 1,
    on_cpus: Sequence[str] = (),
    grows: bool,
) -> list[str]:
    """Compare what a cluster has with what the ranks of runs and their reward services ask for.

    Args:
        there: the cluster's resources by Ray's names.
        ranks: of each run; there are none where none are started.
        rewards: resources of the reward services that are started with them.
        at_once: most runs that are under way at a time.
        on_cpus: those of them that would compute on a GPU and reserve none.
        grows: whether the cluster may get more nodes: then the run may wait for them.

    Returns:
        Lines that somebody should read: what is missing, and GPUs that nothing would use.

    Raises:
        RunFailed: something is missing that will not come.
    """
    of_ranks = _of_ranks(ranks, at_once)
    sums = {name: of_ranks.get(name, 0.0) + rewards.get(name, 0.0) for name in sorted({*of_ranks, *rewards})}
    short = [
        f"{sums[name]:g} {name} ({of_ranks.get(name, 0.0):g} for ranks, {rewards.get(name, 0.0):g} for "
        f"rewards) of {there.get(name, 0.0):g}"
        for name in lacking(sums, there)
    ]
    together = min(at_once, len(ranks))
    asks, waits, fewer = "the run asks", "waits", ""
    if together > 1:
        asks, waits, fewer = f"{together} runs at a time ask", "wait", "parallel, "
    if short and not grows:
        raise RunFailed(
            f"{asks} for {', '.join(short)}: set {fewer}ranks.workers, ranks.cpus_per_worker, "
            "ranks.gpus_per_worker or the rewards' num_cpus, num_gpus and num_replicas lower"
        )
    asked = f"{asks.capitalize()} for {', '.join(short)}, and {waits} for more nodes."
    notes = [asked] if short else []
    if there.get("GPU") and any(not of_run.gpus_per_worker for of_run in ranks):
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


def _of_ranks(ranks: Sequence[RanksConfig], at_once: int) -> dict[str, float]:
    """What the fewest ranks of each run reserve, in the `at_once` runs that ask for most."""
    needs = [
        {name: of_run.fewest * amount for name, amount in of_run.resources_per_worker.items()}
        for of_run in ranks
    ]
    return {
        name: sum(sorted((need.get(name, 0.0) for need in needs), reverse=True)[:at_once])
        for name in {name for need in needs for name in need}
    }
