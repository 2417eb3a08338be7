"""What cannot be had is said before minutes are waited for it, and so is a GPU that would idle."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from reward_services import RewardInfo, RewardNotReady, RewardUnknown, ServerUnreachable
from reward_services.schema import Problem
from reward_services.scorers.jpeg import JpegScorer
from tests.ports import free_port
from trainer.config import RanksConfig, RewardsConfig
from trainer.driver import RunFailed
from trainer.preflight import check_reachable, check_room, check_served

REWARDS = {"CPU": 2.5, "GPU": 0.25}
MACHINE = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}
JPEG = JpegScorer().describe("jpeg", max_items=8)


def test_what_fits_is_not_spoken_of() -> None:
    ranks = RanksConfig(cpus_per_worker=1.5, gpus_per_worker=0.75)
    assert check_room(MACHINE, [ranks], REWARDS, grows=False) == []
    assert check_room(MACHINE, [], REWARDS, grows=False) == []
    assert check_room({"CPU": 2.0}, [RanksConfig(workers=2)], {}, grows=False) == []


def test_what_can_never_be_had_is_refused() -> None:
    ranks = RanksConfig(workers=2, cpus_per_worker=1, gpus_per_worker=1, resources={"trainer": 1})
    with pytest.raises(RunFailed, match=r"asks for 4\.5 CPU") as refused:
        check_room(MACHINE, [ranks], REWARDS, grows=False)
    message = str(refused.value)
    assert (
        "4.5 CPU (2 for ranks, 2.5 for rewards) of 4, 2.25 GPU (2 for ranks, 0.25 for rewards) of 1"
        in message
    )
    assert "2 trainer (2 for ranks, 0 for rewards) of 0: set ranks.workers" in message


def test_a_cluster_that_may_grow_is_waited_for_and_fewer_ranks_may_do() -> None:
    ranks = RanksConfig(workers=4, gpus_per_worker=1)
    (note,) = check_room(MACHINE, [ranks], {}, grows=True)
    assert note == "The run asks for 4 GPU (4 for ranks, 0 for rewards) of 1, and waits for more nodes."
    fewer = ranks.model_copy(update={"min_workers": 1})
    assert check_room(MACHINE, [fewer], {}, grows=True) == []


def test_runs_side_by_side_need_room_for_those_that_ask_for_most() -> None:
    """Of three runs two at a time: at most 2 + 1 CPUs, and one GPU."""
    runs = [RanksConfig(workers=2), RanksConfig(), RanksConfig(cpus_per_worker=0.5, gpus_per_worker=1)]
    assert check_room({"CPU": 3.0, "GPU": 1.0}, runs[::2], {}, at_once=2, grows=True)[:-1] == []
    with pytest.raises(RunFailed, match=r"^2 runs at a time ask for 3 CPU \(3 for .*: set parallel, ranks"):
        check_room({"CPU": 2.5, "GPU": 1.0}, runs, {}, at_once=2, grows=False)
    (note, _) = check_room({"CPU": 2.5, "GPU": 1.0}, runs, {}, at_once=2, grows=True)
    assert note.startswith("2 runs at a time ask for 3 CPU")
    assert note.endswith("of 2.5, and wait for more nodes.")
    assert check_room({"CPU": 2.0}, runs[:2], {}, at_once=1, grows=False) == []
    assert check_room({"CPU": 2.0}, runs[:1], {}, at_once=2, grows=False) == [], "there is but one"


def test_a_gpu_that_would_idle_is_named() -> None:
    (note,) = check_room(MACHINE, [RanksConfig()], {}, grows=False)
    assert "train on CPUs though there is a GPU (1 in all): --set ranks.gpus_per_worker=1" in note
    assert check_room(MACHINE, [], {}, grows=False) == []
    (note,) = check_room(MACHINE, [], {"CPU": 2.0}, on_cpus=["clip", "hpsv2"], grows=False)
    assert "compute on CPUs though there is a GPU (1 in all): clip, hpsv2; num_gpus in rewards.serv" in note
    assert check_room({"CPU": 4.0}, [], {"CPU": 2.0}, on_cpus=["clip"], grows=False) == []


def test_a_cluster_that_does_not_answer_is_a_line() -> None:
    with pytest.raises(RunFailed, match="no Ray cluster answers"):
        check_reachable("127.0.0.1:1")
    with pytest.raises(RunFailed, match="is no address of a cluster; write HOST:PORT"):
        check_reachable("ray://head:10001")


class ServesJpeg(BaseHTTPRequestHandler):
    """Says what a reward server says of one reward, beside which another is out of order."""

    def do_GET(self) -> None:
        said: RewardInfo | Problem
        if self.path == "/v1/rewards/jpeg":
            status, said = 200, JPEG
        else:
            broken = self.path == "/v1/rewards"
            error = RewardNotReady("broken does not answer") if broken else RewardUnknown("no such reward")
            status, said = error.status, error.problem()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said.model_dump_json().encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), ServesJpeg) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_rewards_elsewhere_are_asked_for_what_they_serve(url: str) -> None:
    check_served(RewardsConfig())
    check_served(RewardsConfig(url=url, weights={"jpeg": 1.0}))
    with pytest.raises(RewardUnknown, match=f"^{url}: no such reward"):
        check_served(RewardsConfig(url=url, weights={"jpeg": 1.0}, judge="clip"))
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachable, match="is it running, is the URL right"):
        check_served(RewardsConfig(url=nobody, weights={"jpeg": 1.0}))
