"""Winners replayed against graph kept for all branches: memory, time and equality of gradients, in one run.

    python -m tests.bench_replay deploy/shapes/base --prompts 8 --branches 8 --steps 10

Both variants visit the same states and minimise the same loss (SFT-Sharpening on the best branch). `kept`
holds the autograd graph of every branch and step until scores are in, as a straightforward implementation
does; `replayed` samples without gradients and evaluates the winner again. Each variant runs in processes of
its own, in turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from trainer.branches import grow, step_noise
from trainer.config import ModelConfig, SamplingConfig
from trainer.diffusion import clean_and_noise, step_distribution, target_output
from trainer.losses import denoising_errors, path_loss
from trainer.policy import Policy
from trainer.records import Prompt

GUIDANCE = 1.0
PROMPTS = ("a red circle", "two blue squares", "a green cross and a cyan triangle")


def noise_of(policy: Policy, prompts: int, branches: int, steps: int) -> Tensor:
    """The same randomness for both variants."""
    return step_noise(policy.latent_shape, branches=branches, steps=steps, seeds=range(prompts))


def winners(clean: Tensor) -> Tensor:
    """(P, K, C, h, w) to (P,): a stand-in for scores that costs nothing and is the same for both variants."""
    return clean.flatten(2).mean(2).argmax(1)


def kept(policy: Policy, prompts: list[Prompt], noise: Tensor, steps: int) -> Tensor:
    """The loss with the graph of all branches and steps alive."""
    schedule, text = policy.schedule(steps), policy.encode([prompt.text for prompt in prompts])
    count, branches = noise.shape[1:3]
    rows = torch.arange(count).repeat_interleave(branches)
    state, states, outputs = noise[0].flatten(0, 1), [], []
    for j in range(steps):
        output = policy.predict(state, schedule.timesteps_T[j].expand(len(rows)), text.take(rows), GUIDANCE)
        states.append(state)
        outputs.append(output)
        level, next_level = schedule.levels_T[j], schedule.next_levels_T[j]
        clean, eps = clean_and_noise(state, output.detach(), level, schedule.prediction_type)
        mean, std = step_distribution(clean, eps, level, next_level, 1.0)
        state = mean + std * noise[j + 1].flatten(0, 1)
    best = torch.arange(count) * branches + winners(state.unflatten(0, (count, branches)))
    levels = schedule.levels_T[torch.arange(steps).repeat_interleave(count)]
    visited = torch.cat([part[best] for part in states])
    targets = target_output(visited, state[best].repeat(steps, 1, 1, 1), levels, schedule.prediction_type)
    errors = denoising_errors(torch.cat([part[best] for part in outputs]), targets)
    return path_loss(errors.reshape(steps, count).T, torch.full((count,), 1 / count))


def replayed(policy: Policy, prompts: list[Prompt], noise: Tensor, steps: int) -> Tensor:
    """The same loss: branches without gradients, then the winners once more with them."""
    schedule = policy.schedule(steps)
    grown = grow(policy, SamplingConfig(steps=steps, guidance=GUIDANCE), prompts, noise, previews=())
    best, count = winners(grown.clean), len(prompts)
    rows = torch.arange(count)
    visited = grown.states[:-1, rows, best].flatten(0, 1)
    every = torch.arange(steps).repeat_interleave(count)
    levels, timesteps = schedule.levels_T[every], schedule.timesteps_T[every]
    clean = grown.clean[rows, best].repeat(steps, 1, 1, 1)
    targets = target_output(visited, clean, levels, schedule.prediction_type)
    outputs = policy.predict(visited, timesteps, grown.text.take(rows.repeat(steps)), GUIDANCE)
    errors = denoising_errors(outputs, targets).reshape(steps, count).T
    return path_loss(errors, torch.full((count,), 1 / count))


def measure(arguments: argparse.Namespace) -> None:
    """One variant in this process: prints seconds, bytes above the loaded model, and the gradient's norm."""
    torch.set_num_threads(1)
    policy = Policy.load(ModelConfig(path=str(arguments.model), lora=None))
    prompts = [Prompt(index, PROMPTS[index % len(PROMPTS)]) for index in range(arguments.prompts)]
    noise = noise_of(policy, arguments.prompts, arguments.branches, arguments.steps)
    variant = kept if arguments.variant == "kept" else replayed
    policy.encode([prompt.text for prompt in prompts])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    variant(policy, prompts, noise, arguments.steps).backward()
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) * 1024
    norm = torch.nn.utils.get_total_norm([p.grad for p in policy.parameters if p.grad is not None])
    print(json.dumps({"seconds": seconds, "bytes": grown, "gradient_norm": float(norm)}))


def main() -> None:
    """Run both variants in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variant", choices=("kept", "replayed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        return measure(arguments)
    results: dict[str, list[dict[str, float]]] = {"kept": [], "replayed": []}
    for _ in range(arguments.runs):
        for variant, measured in results.items():
            command = [sys.executable, "-m", "tests.bench_replay", *sys.argv[1:], "--variant", variant]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
    medians = {
        variant: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for variant, runs in results.items()
    }
    for variant, median in medians.items():
        mebibytes, norm = median["bytes"] / 2**20, median["gradient_norm"]
        print(f"{variant:9} {median['seconds']:6.2f} s {mebibytes:7.0f} MiB, gradient norm {norm:.6f}")
    time_ratio, memory_ratio = (
        medians["kept"][key] / medians["replayed"][key] for key in ("seconds", "bytes")
    )
    print(f"kept / replayed: {time_ratio:.2f} x the time, {memory_ratio:.2f} x the memory")


if __name__ == "__main__":
    main()
