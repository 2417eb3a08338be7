"""`sharpen`: train a model with rewards, plan it, evaluate it, sample from it, search with it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reward_services import RewardError
from trainer.config import ConfigError, load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 when something of the user's must change, 130 when interrupted."""
    parsed = _parser().parse_args(arguments)
    # On import transformers names what is not installed, and none of it is needed here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except (RewardError, ValueError, RuntimeError, OSError) as error:
        # The one edge of this process: every error of ours is a line that says what to do.
        if parsed.traceback:
            raise
        print(f"sharpen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sharpen: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    if arguments.strict_data:
        strict = (
            ["prompts.strict=true"] if config.data is None else ["prompts.strict=true", "data.strict=true"]
        )
        config = load_config(arguments.config, [*arguments.set, *strict])
    from trainer import cluster, driver, rank_group

    driver.check_place(arguments.config, config)
    folder = driver.check(config)
    print(f"{config.method} on {config.model.path}; the run folder is {folder.path}", flush=True)
    with (
        driver.locked(folder.path),
        cluster.scoring_on_ray(config, arguments.address, ranks=[config.ranks]) as scoring,
    ):
        driver.begin(config, folder)
        driver.watch(config, folder, lambda: rank_group.run_ranks(config, scoring))
    print(driver.conclude(folder))
    return 0 if folder.is_finished else 130


def _plan(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    rates = _rates(arguments.images_per_second)
    import torch

    from trainer import plan

    seconds = arguments.seconds_per_evaluation
    if arguments.measure:
        seconds = plan.measured_seconds(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    planned = plan.plan(config, seconds_per_evaluation=seconds, images_per_second=rates)
    print(json.dumps(planned.as_json(), indent=2) if arguments.json else plan.as_table(config, planned))
    return 0


def _rates(text: str | None) -> dict[str, float]:
    """REWARD=N,REWARD=N as numbers."""
    parts = [part.split("=") for part in text.split(",")] if text else []
    try:
        return {name: float(rate) for name, rate in parts}
    except ValueError:
        raise ValueError(
            f"--images-per-second {text}: write REWARD=NUMBER,REWARD=NUMBER, for example clip=120,hpsv2=40"
        ) from None


def _evaluate(arguments: argparse.Namespace) -> int:
    from trainer import cluster, finished

    config = finished.config_of(arguments.model, arguments.config, arguments.set)
    policy = finished.open_policy(arguments.model, config.model)
    with cluster.scoring_on_ray(config, arguments.address) as scoring:
        result = finished.evaluate(policy, config, scoring)
    print(json.dumps(result.headline(), indent=2))
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from trainer import driver, finished

    driver.check_writable(arguments.out, "--out FOLDER")
    draws = finished.Draws(
        pictures=arguments.pictures,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
    )
    for path in finished.sample(arguments.model, arguments.prompts, folder=arguments.out, draws=draws):
        print(path)
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from trainer import cluster, driver, finished
    from trainer.search.results import SEARCH_FILE, SearchFolder, Settings

    if (arguments.out / SEARCH_FILE).exists():
        raise ConfigError(f"{arguments.out} holds an earlier search; choose another folder with --out")
    driver.check_writable(arguments.out, "--out FOLDER")
    run = finished.run_of(arguments.model)
    config = finished.searched_with(arguments.model, run, arguments.rewards, arguments.reward)
    sampling = finished.sampling_of(
        run, steps=arguments.steps, guidance=arguments.guidance, eta=arguments.eta
    )
    settings = Settings(
        model=str(arguments.model),
        method=arguments.method,
        budget=arguments.budget,
        sampling=sampling,
        weights=config.rewards.weights,
        prompts=arguments.prompts,
        seed=arguments.seed,
    )
    folder = SearchFolder(arguments.out, settings)
    folder.check()
    policy = finished.open_policy(arguments.model, config.model)
    settings.check(policy)
    with cluster.scoring_on_ray(config, arguments.address) as scoring:
        list(folder.search(policy, scoring))
    for path in folder.finish():
        print(path)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from trainer.config.comparison import load_comparison

    comparison = load_comparison(arguments.config, arguments.set)
    from trainer import cluster, driver, rank_group
    from trainer.compare.contest import Job, check, compete, jobs, ranks_of
    from trainer.compare.page import write_comparison
    from trainer.preflight import check_served

    check(comparison)
    left = len(list(jobs(comparison)))
    print(f"{left} runs and searches are left; the comparison is in {comparison.folder}", flush=True)

    def done(job: Job) -> None:
        print(f"{job.name}, seed {job.seed}: done", flush=True)
        write_comparison(comparison)

    def warn(job: Job, warning: str) -> None:
        print(f"{job.name}, seed {job.seed}: Warning: {warning}", file=sys.stderr, flush=True)

    first, *others = [comparison.run_config(name, comparison.seeds[0]) for name in comparison.methods]
    if left:
        for other in others:
            check_served(other.rewards)
        with (
            driver.locked(comparison.folder),
            cluster.scoring_on_ray(
                first, arguments.address, ranks=ranks_of(comparison), at_once=comparison.parallel
            ) as scoring,
        ):
            compete(
                comparison,
                lambda config: rank_group.run_ranks(config, cluster.scoring_of(config, scoring.devices)),
                scoring,
                done=done,
                warn=warn,
            )
    print(write_comparison(comparison))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sharpen", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting"
    )
    settings.add_argument("--address", help="a running Ray cluster; without it one is started here")

    train = commands.add_parser("train", parents=[settings], help="fine-tune a model with rewards")
    train.add_argument("config", type=Path, help="a YAML file such as deploy/shapes.yaml")
    train.add_argument("--strict-data", action="store_true", help="refuse rows that cannot be used")
    train.set_defaults(command=_train)

    _add_plan(commands)
    evaluate = commands.add_parser("evaluate", parents=[settings], help="judge held-out pictures of a model")
    evaluate.add_argument("model", type=Path, help="a run folder or a diffusers folder")
    evaluate.add_argument(
        "--config", type=Path, help="prompts, rewards, sampling, how the model runs; a run folder has its own"
    )
    evaluate.set_defaults(command=_evaluate)

    sample = commands.add_parser("sample", help="draw pictures and write PNG files")
    sample.add_argument("model", type=Path, help="a run folder or a diffusers folder")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT")
    sample.add_argument(
        "--out", type=Path, default=Path("samples"), help="folder of the pictures, numbered on"
    )
    sample.add_argument("--pictures", type=int, default=4, help="pictures of each prompt")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--steps", type=int, help="denoising steps; a run folder has its own")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance; a run folder has its own")
    sample.set_defaults(command=_sample)
    compare = commands.add_parser("compare", parents=[settings], help="methods against each other")
    compare.add_argument("config", type=Path, help="a YAML file such as deploy/compare.yaml")
    compare.set_defaults(command=_compare)
    _add_search(commands)
    return parser


def _add_search(commands: Any) -> None:
    search = commands.add_parser("search", help="search for better pictures, without training")
    search.add_argument("model", type=Path, help="a run folder or a diffusers folder")
    search.add_argument("prompts", nargs="+", metavar="PROMPT")
    search.add_argument(
        "--method",
        default="best_of_n",
        help="best_of_n, zero_order, over_paths, demon or free2guide",
    )
    search.add_argument("--budget", type=int, required=True, help="evaluations of the denoiser for a prompt")
    search.add_argument("--rewards", help="a rewards.yaml or an address; a run folder has its own")
    search.add_argument(
        "--reward", action="append", default=[], metavar="NAME[=WEIGHT]", help="what judges; may be repeated"
    )
    search.add_argument("--out", type=Path, default=Path("found"), help="folder of pictures and search.json")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--steps", type=int, help="denoising steps; a run folder has its own")
    search.add_argument("--guidance", type=float, help="classifier-free guidance; a run folder has its own")
    search.add_argument("--eta", type=float, help="noise put back at each step; a run folder has its own")
    search.add_argument("--address", help="a running Ray cluster; without it one is started here")
    search.set_defaults(command=_search)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="say what a run will need, before it starts")
    plan.add_argument("config", type=Path, help="a YAML file such as deploy/shapes.yaml")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    timing = plan.add_mutually_exclusive_group()
    timing.add_argument(
        "--seconds-per-evaluation", type=float, metavar="S", help="that the denoiser takes for one picture"
    )
    timing.add_argument("--measure", action="store_true", help="load the model and time it here")
    plan.add_argument("--images-per-second", metavar="REWARD=N,...", help="that one replica of each scores")
    plan.add_argument("--json", action="store_true", help="for programs, in bytes and seconds")
    plan.set_defaults(command=_plan)


if __name__ == "__main__":
    sys.exit(main())
