"""Branches stop by their scores so far; those that go on teach what they would have taught among all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_run import configured
from trainer.config import ModelConfig, TrainConfig
from trainer.data.prompts import read_prompts
from trainer.growing import Growing
from trainer.policy import Policy

SEEDS: tuple[int, ...] = (5, 6, 7, 8)
STOP = ("branching.branches=6", "branching.previews=[1, -1]", "branching.stop={after: 1, keep: 3}")
Configured = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def policy(pipelines: dict[str, Path]) -> Policy:
    return Policy.load(ModelConfig(path=str(pipelines["epsilon"]), lora=None))


@pytest.fixture
def configure(pipelines: dict[str, Path], tmp_path: Path) -> Configured:
    return lambda *overrides: configured(tmp_path, pipelines["epsilon"], *overrides)


def begun(config: TrainConfig) -> Growing:
    return Growing(config, read_prompts(str(config.prompts.train))[: len(SEEDS)], SEEDS)


def scored(growing: Growing, policy: Policy, until: int) -> dict[str, Tensor]:
    """Grow to a step and hand over how bright each preview is, which differs where pictures do."""
    previews = growing.grow(policy, until).previews
    bright = [torch.from_numpy(previews[step].mean((2, 3, 4))) for step in sorted(previews)]
    scores = {"jpeg": torch.stack(bright, 2)}
    growing.add(scores)
    return scores


def test_without_a_stop_all_scores_are_of_all_branches(policy: Policy, configure: Configured) -> None:
    growing = begun(configure("branching.previews=[0, 1, -1]"))
    scores = scored(growing, policy, 3)
    lesson, all_scores = growing.lesson()
    assert torch.equal(all_scores["jpeg"], scores["jpeg"])
    assert scores["jpeg"].shape == (4, 3, 3)
    torch.testing.assert_close(lesson.selection.returns_PK, scores["jpeg"].mean(2))
    assert lesson.seeds == SEEDS


def test_previews_go_when_they_are_scored(policy: Policy, configure: Configured) -> None:
    config = configure("branching.previews=[1, -1]")
    kept, gone = (
        Growing(config, read_prompts(str(config.prompts.train))[:4], SEEDS, keeps_previews=keeps)
        for keeps in (True, False)
    )
    assert torch.equal(scored(kept, policy, 3)["jpeg"], scored(gone, policy, 3)["jpeg"])
    assert sorted(kept.lesson()[0].branches.previews) == [1, 2]
    assert gone.lesson()[0].branches.previews == {}


@pytest.mark.parametrize(("method", "lowest"), [("sft_sharpening", 0), ("rlhf_sharpening", 1)])
def test_the_highest_go_on_and_the_lowest_where_they_teach(
    policy: Policy, configure: Configured, method: str, lowest: int
) -> None:
    config = configure(*STOP, f"method={method}")
    unbroken, stopping = begun(config), begun(config)
    whole = scored(unbroken, policy, 3)["jpeg"]
    early_PK = scored(stopping, policy, 2)["jpeg"][..., 0]
    torch.testing.assert_close(early_PK, whole[..., 0])
    ranked_PK = early_PK.argsort(1, descending=True)
    expected_PN = torch.cat([ranked_PK[:, : 3 - lowest], ranked_PK[:, 6 - lowest :]], 1).sort(1).values
    last = scored(stopping, policy, 3)["jpeg"]
    assert last.shape == (4, 3, 1)
    lesson, scores = stopping.lesson()
    among_all = whole.gather(1, expected_PN[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(scores["jpeg"], among_all, rtol=1e-4, atol=0.01)  # a pixel may round otherwise
    torch.testing.assert_close(lesson.selection.returns_PK, scores["jpeg"].mean(2))
    assert torch.equal(lesson.selection.best_P, among_all.mean(2).argmax(1))
    rows_P1 = torch.arange(4)[:, None]
    torch.testing.assert_close(
        lesson.branches.clean, unbroken.lesson()[0].branches.clean[rows_P1, expected_PN], atol=1e-4, rtol=1e-4
    )


def test_the_control_stops_branches_at_random(policy: Policy, configure: Configured) -> None:
    going = {}
    for by in ("reward", "random"):
        growing = begun(configure(*STOP, f"selection.by={by}"))
        early_PK = scored(growing, policy, 2)["jpeg"][..., 0]
        scored(growing, policy, 3)
        kept_PN = growing.lesson()[1]["jpeg"][..., 0]
        going[by] = (early_PK[:, :, None] == kept_PN[:, None]).any(2)
    assert (going["random"].sum(1) == 3).all()
    assert not torch.equal(going["reward"], going["random"])


def test_what_chance_selects_of_a_prompt_follows_from_its_seed_alone(
    policy: Policy, configure: Configured
) -> None:
    """However the prompts are split: over micro-batches, and over ranks."""
    config = configure("selection.by=random", "branching.branches=6")
    scores = torch.arange(24.0).reshape(4, 6, 1)

    def dealt(rows: slice) -> Tensor:
        growing = Growing(config, read_prompts(str(config.prompts.train))[rows], SEEDS[rows])
        growing.grow(policy, 3)
        growing.add({"jpeg": scores[rows]})
        return growing.lesson()[0].selection.returns_PK

    together = dealt(slice(0, 4))
    assert together.sort(1).values.tolist() == scores[..., 0].tolist()
    assert len({tuple(row) for row in (together % 6).tolist()}) > 1
    for parts in ((slice(0, 2), slice(2, 4)), (slice(0, 1), slice(1, 4))):
        assert torch.equal(torch.cat([dealt(rows) for rows in parts]), together)


@pytest.mark.parametrize(("choice", "known"), [("drop_branch", 3), ("drop_prompt", 0)])
def test_a_failure_before_the_stop_counts_as_one_after_it(
    policy: Policy, configure: Configured, choice: str, known: int
) -> None:
    """The branch whose score failed does not go on, which must not hide that the prompt has a failure."""
    growing = begun(configure(*STOP, f"rewards.on_failure={choice}"))
    growing.grow(policy, 2)
    scores = torch.arange(24.0).reshape(4, 6, 1)
    scores[1, 2] = torch.nan
    growing.add({"jpeg": scores})
    scored(growing, policy, 3)
    returns_PK = growing.lesson()[0].selection.returns_PK
    assert (~returns_PK.isnan()).sum(1).tolist() == [3, known, 3, 3]


def test_nothing_is_asked_of_branches_that_did_not_grow(configure: Configured) -> None:
    with pytest.raises(RuntimeError, match="grow branches before they"):
        begun(configure(*STOP)).lesson()
