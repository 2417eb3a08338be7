"""RAY. Of what is served on a cluster, only what dead jobs have left is deleted."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve

from reward_services.ownership import APPLICATION, delete_orphans, own_application

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False
    )
    yield
    serve.shutdown()
    ray.shutdown()


class Nothing:
    """Is served."""


def test_what_no_living_job_owns_is_deleted() -> None:
    """Of the others one is this job's, one everybody's, and two are called nearly like a job's."""
    delete_orphans()
    kept = {own_application(), APPLICATION, f"{APPLICATION}-mine", f"other-{APPLICATION}-0badc0de"}
    served: Any = serve.deployment(ray_actor_options={"num_cpus": 0.1})(Nothing)
    for name in {*kept, f"{APPLICATION}-0badc0de"}:
        serve.run(served.bind(), name=name, route_prefix=None)
    delete_orphans()
    assert set(serve.status().applications) == kept
    assert ray.available_resources()["CPU"] == pytest.approx(2 - 4 * 0.1)
