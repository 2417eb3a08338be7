"""What an evaluation will take: drawing held-out pictures, then waiting for what judges them."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.backlog import Previews, Replicas, answered_s
from trainer.config import TrainConfig
from trainer.families.index import check_model
from trainer.held_out import drawn_at_a_time, shares


@dataclass(frozen=True, slots=True)
class Judged:
    """What a reward does in an evaluation, training stopped meanwhile."""

    replicas: int
    """That rewards.services has of it at most; 1 where that cannot be read here."""
    images_per_second: float
    """That they score together."""
    tail_s: float
    """What is waited for its last scores when all is drawn, beside the other rewards that are known."""
    call_s: float
    """What the largest call takes one of them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation, before, after and on the way."""

    pictures: int
    drawing_s: float
    rewards: Mapping[str, Judged]
    """Those of which it is known what a replica scores, the judge and shadows among them."""


def evaluations_per_picture(config: TrainConfig) -> int:
    """Of the denoiser, where a picture is drawn plainly; raises ModelError where the model cannot be used."""
    return config.sampling.steps * check_model(config.model).evaluations(config.sampling.guidance)


def evaluation_of(
    config: TrainConfig,
    seconds_per_evaluation: float,
    rates: Mapping[str, float],
    served: Mapping[str, int],
) -> Evaluation | None:
    """Work out an evaluation; None without held-out prompts.

    Args:
        config: of the run.
        seconds_per_evaluation: of the denoiser, for one picture on a rank's device.
        rates: images a second that one replica scores, by reward.
        served: replicas that there may be of each reward, as far as that is known.
    """
    sent = _drawn(config, seconds_per_evaluation)
    if not sent:
        return None
    options = config.rewards
    replicas = {name: Replicas(served.get(name) or 1, rate) for name, rate in rates.items()}
    answered = answered_s(
        sent, replicas, batch_images=options.batch_images, calls_at_once=options.calls_at_once
    )
    pictures, drawn_s = sum(batch.images for batch in sent), sent[-1].came_s
    rewards = {
        name: Judged(
            replicas=of_reward.count,
            images_per_second=of_reward.count * of_reward.images_per_second,
            tail_s=answered[name] - drawn_s,
            call_s=min(options.batch_images, pictures) / of_reward.images_per_second,
        )
        for name, of_reward in replicas.items()
    }
    return Evaluation(pictures, drawn_s, rewards)


def _drawn(config: TrainConfig, seconds_per_evaluation: float) -> list[Previews]:
    """The pictures of an evaluation, in the batches that ranks draw, and when each is sent to be judged."""
    if config.prompts.held_out is None:
        return []
    each_s = evaluations_per_picture(config) * seconds_per_evaluation
    own, size = shares(config.evaluation.draws, config.ranks.workers), drawn_at_a_time(config)
    came_s, pictures = 0.0, list[Previews]()
    for first in range(0, len(own[0]), size):
        of_ranks = [len(share[first : first + size]) for share in own]
        came_s += of_ranks[0] * each_s
        pictures.append(Previews(came_s, sum(of_ranks)))
    return pictures
