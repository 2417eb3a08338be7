"""A reward server in a process of its own, so that its memory can be measured while it is abused."""

import base64
import contextlib
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from reward_services.schema import Limits
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests" / "reward_services" / "golden" / "clip" / "model"
REWARDS = ("jpeg", "clip")
LIMITS = Limits(body_timeout_s=3.0)
"""As they are served, but for a deadline that a test can wait for."""

_GOOD = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
_START_S, _ANSWER_S = 120.0, 60.0


def json_item(encoded: bytes, media_type: str = "image/png", prompt: str = "a red circle") -> dict[str, Any]:
    """An item of a JSON request."""
    return {
        "prompt": prompt,
        "image": {"media_type": media_type, "data": base64.b64encode(encoded).decode()},
    }


def request(*items: dict[str, Any], rewards: Sequence[str] = REWARDS) -> dict[str, Any]:
    """A scoring request as JSON."""
    return {"rewards": list(rewards), "items": list(items)}


def png(array: Any) -> bytes:
    """An array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Victim:
    """A server on a port of this machine, and what it says of itself to the kernel."""

    def __init__(self, port: int, pid: int, key: str = "") -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self._proc = Path(f"/proc/{pid}")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=_ANSWER_S, headers=headers)
        self._exact = self._good_scores()

    def post(self, **content: Any) -> httpx.Response:
        """A scoring request, politely."""
        return self.http.post("/v1/scores", **content)

    def say(self, raw: bytes, *, patience_s: float = 20.0) -> bytes:
        """Whatever the server answers to these bytes until it hangs up; b"" when it hangs up silently.

        Raises:
            TimeoutError: it did neither within `patience_s` seconds.
        """
        with socket.create_connection(("127.0.0.1", self.port), patience_s) as wire:
            with contextlib.suppress(OSError):  # it may have hung up
                wire.sendall(raw)
                wire.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while received := wire.recv(65536):
                    answer += received
        return answer

    def check_health(self) -> None:
        """A good request scores exactly as before all abuse."""
        assert self._good_scores() == self._exact

    @contextmanager
    def bounded(self, most_bytes: int, *, within_s: float) -> Iterator[None]:
        """At its peak the server's memory grows by at most so much meanwhile; afterwards all is well."""
        (self._proc / "clear_refs").write_text("5")  # the peak starts anew
        before, started = self.memory("VmRSS"), time.monotonic()
        yield
        took_s, grown = time.monotonic() - started, self.memory("VmHWM") - before
        self.check_health()
        assert grown <= most_bytes, f"{grown / 2**20:.0f} MiB more"
        assert took_s <= within_s, f"{took_s:.1f} s"

    def memory(self, field: str) -> int:
        """Bytes that the server holds (VmRSS) or has held at most (VmHWM)."""
        status = (self._proc / "status").read_text(encoding="ascii")
        (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
        return 1024 * int(kilobytes)

    def _good_scores(self) -> Any:
        answer = self.post(json=request(json_item(png(_GOOD)), json_item(png(_GOOD[::2]))))
        assert answer.status_code == 200, answer.text
        return [item["scores"] for item in answer.json()["items"]]


@contextmanager
def served(limits: Limits = LIMITS, *, key: str = "", **http: Any) -> Iterator[Victim]:
    """A server with these limits and settings of `http`, as long as the context; ours is the key."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tests.abuse.victim",
        str(port),
        limits.model_dump_json(),
        json.dumps(http),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_it_listens(server, port)
            victim = Victim(port, server.pid, key)
            with contextlib.closing(victim.http):
                yield victim
        finally:
            server.terminate()


def _wait_until_it_listens(server: "subprocess.Popen[bytes]", port: int) -> None:
    ends = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not come up: exit status {server.poll()}")


def serve(port: int, limits: Limits, http: dict[str, Any]) -> None:
    """Serve `jpeg` and a small `clip` until the process is ended."""
    import uvicorn

    from reward_services.config import Http
    from reward_services.http.app import create_app
    from reward_services.scorers.clip import ClipScorer
    from reward_services.scorers.jpeg import JpegScorer
    from tests.rewards_here import RewardsHere

    rewards = RewardsHere({"jpeg": JpegScorer(), "clip": ClipScorer(str(CLIP))})
    app = create_app(rewards, limits=limits, http=Http(**http))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]), Limits.model_validate_json(sys.argv[2]), json.loads(sys.argv[3]))
