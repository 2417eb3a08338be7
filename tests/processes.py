"""Processes of the Ray cluster that a test has started."""

import os
from pathlib import Path


def replica_pids(reward: str) -> set[int]:
    """Processes of this cluster that serve a reward."""
    return pids_titled(f"ServeReplica:rewards:{reward}")


def pids_titled(title: str) -> set[int]:
    """This process's descendants whose command line holds `title`; other clusters may run on this machine."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid for pid in ours if title in titles.get(pid, "")}
