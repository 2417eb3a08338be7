"""Settings of the rewards: where scores come from, what they weigh, and what a failed one means."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.file import Count, Positive, Section, Share


class RewardsConfig(Section):
    """Where scores come from, what they weigh, and what a failed one means.

    A run that learns from pictures in data and evaluates none needs no rewards.
    """

    services: Path | None = None
    """Reward services (a rewards.yaml) that the run starts in its cluster, unless the same are served there
    already, and ends; excludes url."""
    url: str | None = None
    """Address of reward services that run elsewhere, such as http://rewards:8000; excludes services."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each training reward in the score of a preview."""
    judge: str | None = None
    """Reward that judges held-out pictures before and after, and is never trained on: a picture is correct
    (verified) where its score is 0.5 or more. Rewards of another scale are for shadows."""
    shadows: tuple[str, ...] = ()
    """More rewards for held-out pictures only: where they fall behind, the training reward is gamed."""
    deadline_s: Positive = 60.0
    """How long pictures wait for a reward that scores none meanwhile, before they have failed.

    A reward that is merely slow is waited for.
    """
    attempt_s: Positive = 30.0
    """Time of one call, at most half of deadline_s, before its pictures are sent again, fewer at a time. A
    replica must score batch_images within it, or the first calls are in vain."""
    batch_images: Count = 128
    """Most images of one call; a call goes to one replica of each reward."""
    calls_at_once: Count = 4
    """Calls under way at a time; with fewer than a reward has replicas, some of those have nothing to do."""
    on_failure: Literal["drop_branch", "drop_prompt", "stop"] = "drop_branch"
    """What an update does without a score that it needs."""
    failure_budget: Share = 0.05
    """Share of a rank's last 1000 scores that may fail before the run stops; 16 may, unless it is 0."""
    revisions: Literal["follow", "pin"] = "follow"
    """When a reward's revision changes, go on (metrics.jsonl and the report tell), or stop the run."""
    ready_timeout_s: Positive = 300.0
    """Time the reward services have to become ready."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        places = [place for place in (self.services, self.url) if place is not None]
        if len(places) > 1 or (self.names and not places):
            raise ValueError("set one of services (a rewards.yaml) and url (services that run elsewhere)")
        if not self.weights and (self.names or places):
            raise ValueError("weights names no training reward: set weights={NAME: WEIGHT}")
        if self.judge in self.weights:
            raise ValueError(f"the judge {self.judge!r} is also a training reward; take it out of weights")
        for name in self.shadows:
            if name in self.weights or name == self.judge:
                raise ValueError(f"{name!r} scores held-out pictures anyway; take it out of shadows")
        return self

    @property
    def names(self) -> list[str]:
        """Every reward that is asked, training rewards first; empty where nothing is scored."""
        return [*self.weights, *([self.judge] if self.judge else []), *self.shadows]
