"""What settings alone can tell: a port that is taken, and who needs keys."""

import socket
from pathlib import Path

import pytest
import yaml

from reward_services import ConfigInvalid
from reward_services.config import Autoscaling, Http, ServicesConfig
from reward_services.merging import IMAGES_A_CALL
from trainer.config import RewardsConfig

MULTI_GPU = Path(__file__).parents[2] / "deploy" / "serve" / "multi-gpu.yaml"


def test_a_taken_port_is_found_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigInvalid, match="set another http"):
            Http(port=taken.getsockname()[1]).check_port()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert Http(host=host).keys == "none"


def test_gpus_and_cores_are_those_of_all_replicas_there_may_be() -> None:
    share = {"scorer": "jpeg", "num_gpus": 0.25}
    growing = share | {"autoscaling": {"min_replicas": 0, "max_replicas": 6}}
    rewards = {"two": share | {"num_replicas": 2}, "growing": growing, "cpu": {"scorer": "jpeg"}}
    services = ServicesConfig.model_validate({"rewards": rewards})
    assert (services.gpus, services.cpus) == (2.0, 9.0)


def test_resources_are_those_of_the_replicas_that_start_at_first() -> None:
    scaled = {"min_replicas": 0, "max_replicas": 8}
    rewards = {
        "one": {"scorer": "jpeg", "num_replicas": 2, "num_cpus": 0.5, "resources": {"rewards": 1}},
        "two": {"scorer": "jpeg", "num_gpus": 0.25, "autoscaling": scaled},
    }
    config = ServicesConfig.model_validate({"rewards": rewards, "http": {"num_replicas": 2, "num_cpus": 0.5}})
    assert config.resources == {"CPU": 3.0, "GPU": 0.25, "rewards": 2.0}
    assert config.model_copy(update={"http": None}).resources["CPU"] == 2


def test_callers_have_calls_enough_under_way_to_start_replicas() -> None:
    """Calls are merged ones: neither a run nor an endpoint has so many that a high target is reached."""
    target = Autoscaling().target_ongoing_requests
    assert RewardsConfig().calls_at_once / target > 1
    assert Http().images_at_once / IMAGES_A_CALL / target > 1
    (application,) = yaml.safe_load(MULTI_GPU.read_text(encoding="utf-8"))["applications"]
    services = ServicesConfig.model_validate(application["args"])
    assert services.http is not None
    calls = services.http.num_replicas * services.http.images_at_once / IMAGES_A_CALL
    for reward in services.rewards.values():
        assert reward.autoscaling is not None
        assert calls / reward.autoscaling.target_ongoing_requests >= reward.autoscaling.max_replicas


def test_rewards_that_leave_a_gpu_unreserved_are_known() -> None:
    """The one that is told to use CPUs, and those without a model on a device, are not among them."""
    clip = {"scorer": "clip", "options": {"model": "a"}}
    rewards = {
        "one": clip,
        "two": clip | {"num_gpus": 0.2},
        "three": clip | {"options": {"model": "a", "device": "cpu"}},
        "four": {"scorer": "jpeg"},
    }
    assert ServicesConfig.model_validate({"rewards": rewards}).on_cpus == ["one"]
