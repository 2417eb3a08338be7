"""What a finished run leaves to its reader: the model in the ecosystem's format, summary.json, the report."""

from dataclasses import asdict
from typing import Any

from trainer.config import TrainConfig
from trainer.costs import Costs, peak_memory_bytes
from trainer.evaluation import EvaluationResult, paired_difference
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
    summary = {**about(run.config), **spent(costs), "updates": run.update, "peak_memory_bytes": memory}
    summary["rows_left_out"] = len(run.left_out)
    summary |= per_gpu(costs, run.config, run.scoring.stats().get("reward_gpus"))
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


def spent(costs: Costs) -> dict[str, Any]:
    """Counts of all ranks and the times of the average rank, in seconds."""
    return {
        "wall_s": costs.training_s + costs.evaluation_s,
        "training_s": costs.training_s,
        **asdict(costs),
        "stall_fraction": costs.stall_fraction,
        "images_per_second": costs.images_scored / costs.training_s if costs.training_s else 0.0,
    }


def per_gpu(costs: Costs, config: TrainConfig, reward_gpus: float | None) -> dict[str, Any]:
    """Images per second and GPU, those of the rewards counted: waiting less by many more GPUs is no gain.

    Nothing where there is no GPU, or where rewards run elsewhere and nobody knows on how many.
    """
    gpus = config.ranks.workers * config.ranks.gpus_per_worker + (reward_gpus or 0.0)
    if reward_gpus is None or not gpus or not costs.training_s:
        return {}
    return {"gpus": gpus, "images_per_second_per_gpu": costs.images_scored / costs.training_s / gpus}


def gained(before: EvaluationResult, after: EvaluationResult, config: TrainConfig) -> dict[str, Any]:
    """The held-out figures before and after: same prompts, same seeds, plain sampling without search."""
    weights = config.rewards.weights
    figures: dict[str, Any] = {}
    for name, result in (("before", before), ("after", after)):
        means = result.mean_scores
        figures[f"reward_{name}"] = sum(weight * means[reward] for reward, weight in weights.items())
        figures[f"diversity_{name}"] = result.diversity
        figures[f"diversity_of_correct_{name}"] = result.diversity_of_correct
    if config.rewards.judge is None:
        return figures
    change = paired_difference(before.correct, after.correct, before.prompts)
    categories = {name: {"before": value} for name, value in before.accuracy_by_category.items()}
    for name, value in after.accuracy_by_category.items():
        categories.setdefault(name, {})["after"] = value
    return {
        **figures,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "accuracy_by_category": categories,
        "accuracy_gain": change.difference,
        "accuracy_gain_standard_error": change.standard_error,
        "pictures": change.pictures,
        "distinct_prompts": change.clusters,
        "guidance": after.guidance,
    }
