"""The watch: silent where reward and judge rise together, awake where the reward rises alone."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_run import CPU, ScoringHere, configured, picked
from trainer.config import RewardsConfig, TrainConfig, WatchConfig
from trainer.evaluation import EvaluationResult
from trainer.loop import run
from trainer.ranks import Ranks
from trainer.reward_hacking import Watched, watch
from trainer.run_folder import RunFolder

PROMPTS = tuple(f"prompt {place // 2}" for place in range(40))
REWARDS = RewardsConfig(url="http://rewards:8000", weights={"clip": 0.5, "pick": 0.5}, judge="verifier")
SPREAD = tuple(float(place % 4) for place in range(40))  # of mean 1.5 and deviation sqrt(1.25)
VERDICTS = tuple(float(place % 4 > 1) for place in range(40))  # of mean and deviation 0.5


def evaluated(update: int = 0, **changes: Any) -> EvaluationResult:
    result = EvaluationResult(
        update=update,
        guidance=1.0,
        prompts=PROMPTS,
        categories=PROMPTS,
        correct=(None,) * 40,
        scores={"clip": SPREAD, "pick": SPREAD, "verifier": VERDICTS, "shadow": SPREAD},
        diversity=0.4,
        diversity_of_correct=0.1,
        statistics={"dark_share": SPREAD},
    )
    return replace(result, **changes)


def raised(by: float, values: tuple[float, ...] = SPREAD) -> tuple[float, ...]:
    """Not by the same everywhere, or there would be no standard error."""
    return tuple(value + by + 0.1 * (place % 3 - 1) for place, value in enumerate(values))


def seen(rewards: RewardsConfig = REWARDS, options: WatchConfig | None = None, **scores: Any) -> Watched:
    before = evaluated()
    return watch(before, evaluated(8, scores={**before.scores, **scores}), rewards, options or WatchConfig())


def test_changes_are_in_deviations_of_the_pictures_before() -> None:
    watched = seen(clip=raised(1.0), pick=raised(3.0))
    trained, judge, dark = watched.changes
    assert (trained.name, trained.kind, trained.before) == ("training reward", "trained", 1.5)
    assert trained.after - trained.before == pytest.approx(2.0, abs=0.01)
    assert trained.deviations == pytest.approx(2.0 / 1.25**0.5, abs=0.01)
    assert trained.rose
    assert (judge.name, judge.kind, judge.deviations) == ("verifier", "judge", 0)
    assert not judge.rose
    assert not judge.fell
    assert (dark.name, dark.kind) == ("dark_share", "statistic")
    assert json.loads(json.dumps(watched.summary()))["update"] == 8


def test_rising_together_is_no_gap() -> None:
    assert seen(clip=raised(1.0), pick=raised(1.0), verifier=raised(0.4, VERDICTS)).gaps == ()


def test_rising_far_beyond_the_judge_is_one() -> None:
    clauses = seen(clip=raised(2.0), pick=raised(2.0)).gaps
    assert clauses == (
        "the training reward rose by 1.79 standard deviations, while the judge verifier changed by +0.00",
    )
    assert seen(clip=raised(2.0), pick=raised(2.0), options=WatchConfig(gap=1.9)).gaps == ()


def test_a_judge_that_falls_is_one_however_little_the_reward_rose() -> None:
    assert seen(clip=raised(0.2), pick=raised(0.2), verifier=raised(-0.2, VERDICTS)).gaps
    assert seen(verifier=raised(-0.2, VERDICTS)).gaps == (), "the reward did not rise"


def test_each_shadow_has_its_own_word() -> None:
    shadowed = REWARDS.model_copy(update={"shadows": ("shadow",)})
    (clause,) = seen(
        shadowed, clip=raised(1.0), pick=raised(1.0), verifier=raised(0.4, VERDICTS), shadow=raised(-0.5)
    ).gaps
    assert "the shadow shadow changed by -0.4" in clause


def test_failed_scores_are_left_out_and_all_failed_is_no_opinion() -> None:
    some = (None, *raised(2.0)[1:])
    watched = seen(clip=some, pick=raised(2.0))
    assert watched.changes[0].after == pytest.approx(sum(raised(2.0)[1:]) / 39)
    assert watched.gaps
    silent = seen(clip=raised(2.0), pick=raised(2.0), verifier=(None,) * 40)
    assert [change.kind for change in silent.changes] == ["trained", "statistic"]
    assert silent.gaps == ()
    assert seen(clip=(None,) * 40, verifier=raised(-0.2, VERDICTS)).gaps == ()


def test_pictures_that_look_otherwise_are_a_symptom() -> None:
    before = evaluated()
    shifted = watch(before, evaluated(statistics={"dark_share": raised(-3.0)}), REWARDS, WatchConfig())
    (clause,) = shifted.symptoms
    assert re.fullmatch(r"dark_share went from 1.5 to -1.5\d*, -2.6\d standard deviations", clause)
    assert shifted.gaps == ()
    assert (
        watch(before, evaluated(statistics={"dark_share": raised(2.0)}), REWARDS, WatchConfig()).symptoms
        == ()
    )


def test_lost_diversity_is_a_symptom() -> None:
    def symptoms(**changes: Any) -> tuple[str, ...]:
        return watch(evaluated(), evaluated(**changes), REWARDS, WatchConfig()).symptoms

    assert symptoms(diversity_of_correct=0.04) == ("diversity of correct pictures went from 0.100 to 0.040",)
    assert symptoms(diversity=0.1) == (), "correct pictures are as diverse as they were"
    assert symptoms(diversity_of_correct=None, diversity=0.1) == ("diversity went from 0.400 to 0.100",)


@pytest.fixture
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def go(config: TrainConfig) -> bool:
    return run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)


GAMED = (
    "updates=6",
    "optimizer.lr=1e-2",
    "branching.branches=6",
    "evaluation.draws=48",
    "evaluation.batch_size=16",
    "evaluation.every_updates=2",
)


def test_a_gamed_reward_is_seen(folder: Path, tmp_path: Path) -> None:
    """Learned from the size of its JPEG alone, a model loses what its judge looks for."""
    config = configured(tmp_path, folder, *GAMED)
    assert go(config)
    summary = json.loads((config.run_folder / "summary.json").read_text(encoding="utf-8"))
    (gap,) = summary["watch"]["gaps"]
    assert "while the judge large changed by -" in gap
    assert any("edge_density went from" in symptom for symptom in summary["watch"]["symptoms"])


def test_a_gamed_reward_stops_the_run_if_that_is_set(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, *GAMED, "watch.on_gap=stop")
    assert not go(config)
    failure = str(RunFolder(config.run_folder).failure)
    assert "the training reward rose" in failure
    assert "watch.on_gap=report" in failure
    made = len(picked(config))
    assert made < 6
    assert (config.run_folder / "checkpoints" / f"update-{made:06d}").exists()
    assert go(configured(tmp_path, folder, *GAMED)), "watched otherwise, it goes on"


def test_a_gamed_reward_raises_the_kl_weight_if_that_is_set(folder: Path, tmp_path: Path) -> None:
    options = (*GAMED, "updates=8", "loss.kl_weight=0.5", "watch.on_gap=raise_kl", "watch.kl_factor=3")
    config = configured(tmp_path, folder, *options)
    assert go(config)
    saved = torch.load(config.run_folder / "checkpoints" / "update-000008" / "learner.pt", weights_only=True)
    assert saved["kl_weight"] in (0.5 * 3, 0.5 * 9)
