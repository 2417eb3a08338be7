"""Measures the embedded default beside its no-reward control: `python -m deploy.shapes.control runs/control`.

For each seed the same run twice: winners by reward, and winners drawn at random (same data, updates and
budget, and the same returns dealt to other branches). A gain is what exceeds the control. Finished runs are
not run again.
"""

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.evaluation import EvaluationResult, PairedDifference, paired_difference
from trainer.run_folder import RunFolder

KEPT = (
    "accuracy_before",
    "accuracy_after",
    "reward_before",
    "reward_after",
    "diversity_before",
    "diversity_after",
    "diversity_of_correct_before",
    "diversity_of_correct_after",
)


def run(config: Path, folder: Path, settings: list[str]) -> RunFolder:
    """One run by the command that anyone would give."""
    if not RunFolder(folder).is_finished:
        chosen = [option for setting in (f"run_folder={folder}", *settings) for option in ("--set", setting)]
        subprocess.run([sys.executable, "-m", "trainer", "train", str(config), *chosen], check=True)
    return RunFolder(folder)


def above(control: EvaluationResult, reward: EvaluationResult) -> PairedDifference:
    """Accuracy of the run above its control's, on the same prompts and seeds, clustered by caption."""
    return paired_difference(control.correct, reward.correct, reward.prompts)


def figures(folder: RunFolder) -> dict[str, Any]:
    """What of a run's summary is kept."""
    summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    return {
        name: summary[name] for name in (*KEPT, "accuracy_gain", "accuracy_gain_standard_error", "training_s")
    }


def main() -> None:
    """Run what is missing, print a line for each seed and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--config", type=Path, default=Path("deploy/shapes.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        by_reward, control = (
            run(
                arguments.config,
                arguments.folder / f"{by}-{seed}",
                [f"seed={seed}", f"selection.by={by}", *arguments.set],
            )
            for by in ("reward", "random")
        )
        difference = above(control.load_evaluation("after"), by_reward.load_evaluation("after"))
        runs.append(
            {
                "seed": seed,
                "reward": figures(by_reward),
                "control": figures(control),
                "above_control": asdict(difference),
            }
        )
        before, after = (runs[-1]["reward"][f"accuracy_{when}"] for when in ("before", "after"))
        print(
            f"seed {seed}: {before:.3f} -> {after:.3f}, control {runs[-1]['control']['accuracy_after']:.3f}, "
            f"above it {difference.difference:+.3f} +- {difference.standard_error:.3f}",
            flush=True,
        )
    if arguments.out:
        command = ["python -m deploy.shapes.control", str(arguments.folder)]
        command += ["--seeds", *map(str, arguments.seeds)]
        command += [part for setting in arguments.set for part in ("--set", setting)]
        measured = {"date": datetime.date.today().isoformat(), "command": " ".join(command), "runs": runs}
        arguments.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
