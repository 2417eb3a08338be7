"""The `rewards` command: serve rewards, make keys, list what a server offers, score one image, measure."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from reward_services.bench import HEADING, Encoding, Plan, cells, row
from reward_services.client import DEFAULT_URL, RewardClient
from reward_services.config_file import load_config
from reward_services.errors import ConfigInvalid, RewardError
from reward_services.http.keys import new_key
from reward_services.rewards import check_known
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
    bench = commands.add_parser("bench", help="throughput and latency of a server, by encoding and callers")
    _add_bench_arguments(bench)
    for command in (listing, score):
        command.add_argument("--url", default=DEFAULT_URL, help=f"the server ({DEFAULT_URL})")
    for command, function in ((listing, _list), (score, _score), (bench, _bench)):
        command.epilog = "A server's key is taken from REWARDS_API_KEY."
        command.set_defaults(command=function)
    return parser


def _add_bench_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("url", metavar="URL", help=f"the server, such as {DEFAULT_URL}")
    bench.add_argument("--rewards", type=_words, metavar="A,B", help="default: every one")
    encodings, callers = ",".join(Plan.encodings), ",".join(map(str, Plan.callers))
    bench.add_argument(
        "--encoding", type=_encodings, default=encodings, metavar="A,B", help=f"of images ({encodings})"
    )
    bench.add_argument(
        "--concurrency", type=_counts, default=callers, metavar="N,M", help=f"callers ({callers})"
    )
    images, size = Plan.images_per_request, Plan.size
    bench.add_argument(
        "--images-per-request", type=_count, default=images, metavar="N", help="of each (%(default)s)"
    )
    bench.add_argument("--size", type=_count, default=size, metavar="PIXELS", help="of a side (%(default)s)")
    bench.add_argument(
        "--seconds", type=float, default=Plan.seconds, metavar="S", help="of each line (%(default)g)"
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _encodings(text: str) -> tuple[str, ...]:
    unknown = set(_words(text)) - set(get_args(Encoding))
    if unknown:
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(get_args(Encoding))}")
    return _words(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in _words(text))


def _serve(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    from reward_services import deployments

    address = options.address or os.environ.get("RAY_ADDRESS")
    with deployments.cluster(address):
        # What stops a container is to end as Ctrl-C does; Ray's own answer to it is a stack dump.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if not address:
            deployments.check_room(config)
        deployments.deploy(config, timeout_s=options.timeout)
        where = f" at http://{config.http.host}:{config.http.port}" if config.http else ""
        end = "they stay on the cluster" if address else "Ctrl-C stops them"
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
        served = client.listed()
        for info in served.data:
            lowest, highest = info.range
            span = f"[{'-inf' if lowest is None else lowest}, {'inf' if highest is None else highest}]"
            print(f"{info.id:<16} {'ready' if info.ready else 'not ready':<10} {span:<16} {info.revision}")
    for name, problem in served.missing.items():
        print(f"{name:<16} {'missing':<10} {problem.detail or problem.title}")
    return 2 if served.missing else 0


def _score(options: argparse.Namespace) -> int:
    with _client(options) as client:
        names = options.reward or [info.id for info in client.describe()]
        scores = client.score([options.image], [options.prompt], rewards=names, deadline_s=options.timeout)
    for name in names:
        print(f"{name:<16} {_shown(scores[name][0])}")
    return 0 if all(scores[name][0].ok for name in names) else 2


def _bench(options: argparse.Namespace) -> int:
    with _client(options) as client:
        revisions = {info.id: info.revision for info in client.describe()}
    rewards = options.rewards or tuple(revisions)
    check_known(rewards, revisions)
    plan = Plan(
        rewards=rewards,
        encodings=options.encoding,
        callers=options.concurrency,
        images_per_request=options.images_per_request,
        size=options.size,
        seconds=options.seconds,
    )
    print(
        f"{options.url}: {', '.join(rewards)}; {plan.images_per_request} images of {plan.size} px a request"
    )
    print(HEADING)
    report: dict[str, Any] = {"url": options.url, "revisions": revisions, **asdict(plan), "cells": []}
    for cell in cells(options.url, plan, os.environ.get("REWARDS_API_KEY")):
        print(row(cell), flush=True)
        report["cells"].append(asdict(cell))
        if options.json:
            _write(options.json, json.dumps(report, indent=2) + "\n")
    return 2 if any(cell["failed_requests"] or cell["failed_scores"] for cell in report["cells"]) else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"cannot write {path}: {error.strerror}") from error


def _shown(score: Score) -> str:
    if score.error is not None:
        return f"failed: {score.error.detail or score.error.title}"
    parts = "  ".join(f"{part}={value:g}" for part, value in (score.parts or {}).items())
    return f"{score.value:.4f}  {parts}".rstrip()
