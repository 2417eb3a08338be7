"""What an update takes: evaluations of the denoiser, previews, and when these are sent to be scored."""

import math
from dataclasses import dataclass
from itertools import chain, pairwise

from trainer.backlog import Previews
from trainer.config import TrainConfig
from trainer.families.family import Family
from trainer.families.index import check_model
from trainer.memory import chosen_branches, replayed_states
from trainer.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Work:
    """What one update of all ranks takes, where no score fails."""

    evaluations_sampling: int
    """Pictures times evaluations of the denoiser, growing branches."""
    evaluations_learning: int
    """The same replaying those that were chosen, policy and reference."""
    images_scored: int
    """Previews, each of which every reward scores."""
    micro_batches: int
    """Parts of an update that a rank samples; all but the last, and that before branches stop, are scored
    while the next one is sampled."""
    reward_calls: int
    """Batches sent to a reward where ranks ask within 5 ms of each other and rewards keep up; else more."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stretch of growing, at whose end all ranks wait for their scores; of one prompt."""

    evaluations: int
    """States at which the model is asked."""
    previews: int
    sent: int
    """Those that differ: where branches are still one, theirs is scored once."""


def work_of(config: TrainConfig, family: Family) -> Work:
    """What one update takes; the counts are those of a run's metrics.

    Args:
        config: of the run.
        family: its model; no weights are needed.

    Raises:
        ConfigError: its method has no step to learn.
    """
    prompts, stages = config.branching.prompts_per_update, _stages(config)
    grown = prompts * sum(stage.evaluations for stage in stages)
    learned = chosen_branches(config, prompts) * replayed_states(config, family)
    replayed = learned * family.evaluations(config.learned_guidance)
    sent = [previews.images for previews in chain.from_iterable(sampled(config, 0.0))]
    batches = sum(math.ceil(images / config.rewards.batch_images) for images in sent)
    return Work(
        evaluations_sampling=grown * family.evaluations(config.sampling.guidance),
        evaluations_learning=replayed * models_asked(config),
        images_scored=prompts * sum(stage.previews for stage in stages),
        micro_batches=len(_micro_batches(config)) * len(config.stages),
        reward_calls=batches * len(config.rewards.weights),
    )


def models_asked(config: TrainConfig) -> int:
    """Models asked about a state in all optimizer steps of an update: the policy, the reference where it
    counts, and where a method looks back the policy that sampled, which in the first step is the policy.
    """
    reference, steps = config.is_paired or config.loss.kl_weight > 0, config.optimizer.steps_per_update
    return steps * (1 + reference) + (steps - 1) * config.looks_back


def sampled(config: TrainConfig, seconds_per_evaluation: float) -> list[list[Previews]]:
    """What is sent to be scored in each stage, and when after its beginning."""
    each = check_model(config.model).evaluations(config.sampling.guidance)
    stages = []
    for stage in _stages(config):
        came_s, previews = 0.0, list[Previews]()
        for of_ranks in _micro_batches(config):
            came_s += max(of_ranks) * stage.evaluations * each * seconds_per_evaluation
            previews.append(Previews(came_s, sum(of_ranks) * stage.sent))
        stages.append(previews)
    return stages


def _stages(config: TrainConfig) -> list[_Stage]:
    if config.data is not None:
        return []
    widths = (config.branching.branches, config.finished_branches)
    stages, shared = [], config.branching.shared_steps
    for (first, until), width in zip(pairwise((0, *config.stages)), widths):
        asked = [1 if step < shared else width for step in range(first, until)]
        shown = [step for step in config.preview_steps if first <= step < until]
        stages.append(_Stage(sum(asked), len(shown) * width, sum(asked[step - first] for step in shown)))
    return stages


def _micro_batches(config: TrainConfig) -> list[tuple[int, ...]]:
    """The prompts of each micro-batch of an update on every rank, as the loop deals them."""
    workers, size = config.ranks.workers, config.branching.prompts_per_micro_batch
    prompts = range(config.branching.prompts_per_update)
    shares = [len(prompts[Ranks(rank, workers).share(len(prompts))]) for rank in range(workers)]
    firsts = range(0, max(shares), size)
    return [tuple(min(size, max(0, share - first)) for share in shares) for first in firsts]
