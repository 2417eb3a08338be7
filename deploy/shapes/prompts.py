"""Writes the embedded world's prompt files: every category alike, held-out combinations in a file apart."""

import argparse
import json
from pathlib import Path

import numpy as np

from deploy.shapes.data import split
from reward_services.shapes.captions import CATEGORIES


def draw_prompts(each: int, *, held_out: bool, seed: int) -> list[dict[str, str]]:
    """`each` prompts of every category in random order; small categories repeat theirs."""
    rng = np.random.default_rng(seed)
    prompts = []
    for category in CATEGORIES:
        scenes = split(category, held_out=held_out)
        chosen = np.concatenate([rng.permutation(len(scenes)) for _ in range(-(-each // len(scenes)))])[:each]
        prompts += [{"prompt": scenes[index].text, "category": category} for index in chosen]
    return [prompts[index] for index in rng.permutation(len(prompts))]


def main() -> None:
    """Write train.jsonl and held-out.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, each, held_out in (("train", 400, False), ("held-out", 128, True)):
        prompts = draw_prompts(each, held_out=held_out, seed=arguments.seed)
        lines = [json.dumps(prompt) + "\n" for prompt in prompts]
        (arguments.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(prompts)} prompts, {len({p['prompt'] for p in prompts})} different")


if __name__ == "__main__":
    main()
