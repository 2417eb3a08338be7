"""What a finished run leaves to its reader: the model in the ecosystem's format, summary.json, the report."""

from typing import Any

from trainer.config import TrainConfig
from trainer.costs import Costs, Devices, panel, peak_memory_bytes
from trainer.evaluation import CORRECT_FROM, EvaluationResult, paired_difference
from trainer.reward_hacking import watch
from trainer.run import Run


def finish(run: Run) -> None:
    """Save the sharpened model and what the run found and spent. All ranks call it; rank 0 writes."""
    costs = run.spent()
    memory = sum(run.ranks.gather(peak_memory_bytes()))
    with run.learner.averaged(), run.policy.assembled(keep=run.ranks.is_main):
        if run.ranks.is_main:
            run.folder.save_model("pipeline" if run.config.model.lora is None else "lora", run.policy.save)
    if not run.ranks.is_main:
        return
    summary = {**about(run.config), "updates": run.update, "peak_memory_bytes": memory}
    summary |= {**spent(costs, run.devices), **counted(run.devices, run.scoring.devices)}
    summary["rows_left_out"] = len(run.left_out)
    if run.held_out is not None:
        before, after = run.folder.load_evaluation("before"), run.folder.load_evaluation("after")
        summary |= gained(before, after, run.config)
        summary["watch"] = watch(before, after, run.config.rewards, run.config.watch).summary()
        run.folder.save_grid(before, after)
    run.folder.write_summary(summary)


def about(config: TrainConfig) -> dict[str, Any]:
    """What was run, and the figures of its no-reward control where the configuration carries them."""
    control = {"control": config.control.model_dump(mode="json")} if config.control else {}
    return {
        "method": config.method,
        "selection": config.selection.by,
        "seed": config.seed,
        "model": config.model.path,
        **control,
    }


def spent(costs: Costs, devices: Devices) -> dict[str, Any]:
    """Counts of all ranks, the times of the average rank in seconds, and speed."""
    times = {"wall_s": costs.training_s + costs.evaluation_s, "training_s": costs.training_s}
    return {**times, **panel(costs, devices)}


def counted(devices: Devices, of_rewards: Devices | None) -> dict[str, Any]:
    """On how many devices the run was; how many of them were the rewards', None where nobody knows."""
    reserved = of_rewards and (of_rewards.gpus if devices.gpus else of_rewards.cpus)
    return {"devices": devices.count, "device": devices.kind, "reward_devices": reserved}


def gained(before: EvaluationResult, after: EvaluationResult, config: TrainConfig) -> dict[str, Any]:
    """The held-out figures before and after: same prompts, same seeds, plain sampling without search.

    Without the gain where pictures of fewer than two prompts were judged both times: its error is unknown.
    """
    figures: dict[str, Any] = {}
    for name, result in (("before", before), ("after", after)):
        figures[f"reward_{name}"] = result.reward(config.rewards.weights)
        figures[f"diversity_{name}"] = result.diversity
        figures[f"diversity_of_correct_{name}"] = result.diversity_of_correct
        figures[f"unscored_{name}"] = result.unscored
    if config.rewards.judge is None:
        return figures
    categories = {name: {"before": value} for name, value in before.accuracy_by_category.items()}
    for name, value in after.accuracy_by_category.items():
        categories.setdefault(name, {})["after"] = value
    figures |= {
        "judge": config.rewards.judge,
        "correct_from": CORRECT_FROM,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "accuracy_by_category": categories,
        "guidance": after.guidance,
    }
    verdicts = zip(before.prompts, before.correct, after.correct, strict=True)
    if len({prompt for prompt, *both in verdicts if None not in both}) < 2:
        return figures
    change = paired_difference(before.correct, after.correct, before.prompts)
    return {
        **figures,
        "accuracy_gain": change.difference,
        "accuracy_gain_standard_error": change.standard_error,
        "pictures": change.pictures,
        "distinct_prompts": change.clusters,
    }
