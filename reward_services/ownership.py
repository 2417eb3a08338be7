"""RAY. Whose an application of Serve is: one is everybody's and stays, those of runs end with their jobs."""

from __future__ import annotations

import re
from contextlib import suppress

import ray
from ray import serve
from ray._private.state import jobs

APPLICATION = "rewards"
"""The name of everybody's."""
_OF_A_JOB = re.compile(rf"{APPLICATION}-([0-9a-f]{{8}})")


def own_application() -> str:
    """The name of what this job serves for itself."""
    return f"{APPLICATION}-{ray.get_runtime_context().get_job_id()}"


def delete_orphans() -> None:
    """Delete the applications of jobs that have ended without doing it themselves."""
    of_jobs = {name: found[1] for name in serve.status().applications if (found := _OF_A_JOB.fullmatch(name))}
    # Jobs are listed after the applications, so that the job of each is among them while it lives.
    alive = {job["JobID"] for job in jobs() if not job["IsDead"]}
    for name, job in of_jobs.items():
        if job not in alive:
            with suppress(TimeoutError):
                serve.delete(name)
