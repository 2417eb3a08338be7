"""The `rewards` command: serve rewards, make keys, list what a server offers, score one image."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from reward_services.client import DEFAULT_URL, RewardClient
from reward_services.config import load_config
from reward_services.errors import RewardError
from reward_services.http.keys import new_key
from reward_services.schema import Lane, Score


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what it says, 2 with one line on stderr when it cannot."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except RewardError as error:
        print(f"rewards: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rewards", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the rewards of a configuration")
    serve.add_argument("config", type=Path, metavar="CONFIG", help="such as deploy/rewards.yaml")
    serve.add_argument("--address", help="a running Ray cluster (or RAY_ADDRESS); else one is started here")
    serve.add_argument("--timeout", type=float, default=120.0, metavar="S", help="longest start (120)")
    serve.set_defaults(command=_serve)

    key = commands.add_parser("key", help="keys of callers")
    new = key.add_subparsers(required=True, metavar="ACTION").add_parser(
        "new", help="make a key: its line for the file of keys on stdout, the key itself on stderr"
    )
    new.add_argument("name", metavar="NAME", help="whose key it is; goes into logs")
    new.add_argument("--lane", choices=get_args(Lane), default="others", help="who goes first (others)")
    new.add_argument("--images-per-minute", type=int, metavar="N", help="the quota; default: none")
    new.set_defaults(command=_new_key)

    listing = commands.add_parser("list", help="what a server offers")
    score = commands.add_parser("score", help="score one image")
    score.add_argument("image", type=Path, metavar="IMAGE", help="a PNG, JPEG or WebP file")
    score.add_argument("prompt", metavar="PROMPT")
    score.add_argument(
        "--reward", action="append", default=[], metavar="NAME", help="repeatable; default: every one"
    )
    score.add_argument("--timeout", type=float, default=30.0, metavar="S", help="longest wait (30)")
    for command, function in ((listing, _list), (score, _score)):
        command.add_argument("--url", default=DEFAULT_URL, help=f"the server ({DEFAULT_URL})")
        command.epilog = "A server's key is taken from REWARDS_API_KEY."
        command.set_defaults(command=function)
    return parser


def _serve(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    from reward_services import deployments

    address = options.address or os.environ.get("RAY_ADDRESS")
    with deployments.cluster(address):
        deployments.deploy(config, timeout_s=options.timeout)
        where = f" at http://{config.http.host}:{config.http.port}" if config.http else ""
        end = "they stay on the cluster" if address else "Ctrl-C stops them"
        # What stops a container is to end as Ctrl-C does; Ray's own answer to it is a stack dump.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"serving {', '.join(config.rewards)}{where}; {end}", flush=True)
        while not address:
            time.sleep(3600)
    return 0


def _new_key(options: argparse.Namespace) -> int:
    key, line = new_key(options.name, options.lane, options.images_per_minute)
    print(f"the key of {options.name}, shown this once: {key}", file=sys.stderr)
    print(line)
    return 0


def _client(options: argparse.Namespace) -> RewardClient:
    return RewardClient(options.url, api_key=os.environ.get("REWARDS_API_KEY"), retries=1)


def _list(options: argparse.Namespace) -> int:
    with _client(options) as client:
        for info in client.describe():
            lowest, highest = info.range
            span = f"[{'-inf' if lowest is None else lowest}, {'inf' if highest is None else highest}]"
            print(f"{info.id:<16} {'ready' if info.ready else 'not ready':<10} {span:<16} {info.revision}")
    return 0


def _score(options: argparse.Namespace) -> int:
    with _client(options) as client:
        names = options.reward or [info.id for info in client.describe()]
        scores = client.score([options.image], [options.prompt], rewards=names, deadline_s=options.timeout)
    for name in names:
        print(f"{name:<16} {_shown(scores[name][0])}")
    return 0 if all(scores[name][0].ok for name in names) else 2


def _shown(score: Score) -> str:
    if score.error is not None:
        return f"failed: {score.error.detail or score.error.title}"
    parts = "  ".join(f"{part}={value:g}" for part, value in (score.parts or {}).items())
    return f"{score.value:.4f}  {parts}".rstrip()
