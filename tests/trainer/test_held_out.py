"""Held-out pictures: the same from the same seeds, in any batches, on any ranks; judged, or it is the end."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from reward_services import Score
from tests.small_run import CAPTIONS, ScoringHere, configured, in_two_ranks
from tests.tiny import IMAGE_SIZE
from trainer.config import TrainConfig
from trainer.held_out import Evaluated, HeldOut
from trainer.policy import Policy
from trainer.ranks import Halted, Ranks


@pytest.fixture
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def evaluated(
    config: TrainConfig, scoring: ScoringHere | None = None, ranks: Ranks | None = None
) -> Evaluated:
    held_out = HeldOut(config, scoring or ScoringHere(), ranks or Ranks())
    return held_out.evaluate(Policy.load(config.model, trainable=False), update=7)


def test_pictures_are_judged(folder: Path, tmp_path: Path) -> None:
    scoring = ScoringHere()
    found = evaluated(configured(tmp_path, folder, "evaluation.prompts=first"), scoring)
    result = found.result
    assert found.pictures.shape == (8, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert len({picture.tobytes() for picture in found.pictures}) == 8
    assert result.prompts == tuple(text for text in CAPTIONS[:4] for _ in range(2))
    assert (result.update, result.guidance, result.diversity) == (7, 1.5, None)
    sizes = [score.value for score in ScoringHere()._scorers["large"].score(list(found.pictures), [""] * 8)]
    assert list(result.scores["large"]) == sizes
    assert list(result.correct) == [size is not None and size >= 0.5 for size in sizes]
    assert result.categories[:4] == ("attribute", "attribute", "count", "count")


def test_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    pictures = [
        evaluated(configured(tmp_path, folder, f"evaluation.batch_size={size}")).pictures.astype(int)
        for size in (1, 3, 8)
    ]
    # Sums in another order may turn a rounding.
    assert all(np.abs(other - pictures[0]).max() <= 1 for other in pictures)


def test_a_batch_is_as_large_as_training_grows_branches(folder: Path, tmp_path: Path) -> None:
    """2 prompts of 3 branches each: 8 pictures are drawn 6 and 2 at a time, unless it is set."""
    for options, sizes in (["evaluation.batch_size=null"], [6, 2]), ([], [3, 3, 2]):
        scoring = ScoringHere()
        evaluated(configured(tmp_path, folder, *options), scoring)
        assert [len(scores["large"]) for scores in scoring.asked] == sizes


def test_more_draws_than_prompts_begin_again_with_other_seeds(folder: Path, tmp_path: Path) -> None:
    found = evaluated(configured(tmp_path, folder, "evaluation.draws=16"))
    assert found.result.prompts[12:14] == (CAPTIONS[0],) * 2
    assert len({picture.tobytes() for picture in found.pictures}) == 16


def test_prompts_come_from_all_over_the_file_or_first(folder: Path, tmp_path: Path) -> None:
    """Benchmarks are in the order of their categories."""
    held_out = tmp_path / "benchmark"
    held_out.mkdir()
    for category in ("colour", "count", "shape"):
        (held_out / f"{category}.txt").write_text("\n".join(f"{category} {n}" for n in range(30)))
    drawn = {}
    for choice in ("evenly", "first"):
        options = (f"prompts.held_out={held_out}", "evaluation.draws=12", "evaluation.pictures_per_prompt=2")
        config = configured(tmp_path, folder, *options, f"evaluation.prompts={choice}")
        texts = [prompt.text for prompt, _ in HeldOut(config, ScoringHere(), Ranks())._draws]
        drawn[choice] = list(dict.fromkeys(texts))
    assert drawn["evenly"] == ["colour 0", "colour 15", "count 0", "count 15", "shape 0", "shape 15"]
    assert drawn["first"] == [f"colour {n}" for n in range(6)]


def test_features_measure_diversity(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    found = evaluated(configured(tmp_path, folder, f"evaluation.features={clip_folder}"))
    assert found.result.diversity is not None
    assert 0 < found.result.diversity < 1
    # `large` calls every picture correct.
    assert found.result.diversity_of_correct == pytest.approx(found.result.diversity)
    unjudged = evaluated(
        configured(tmp_path, folder, f"evaluation.features={clip_folder}", "rewards.judge=null")
    )
    assert unjudged.result.diversity == pytest.approx(found.result.diversity)
    assert unjudged.result.diversity_of_correct is None


def test_nothing_to_evaluate_on_says_so(folder: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, folder, "prompts.held_out=null")
    with pytest.raises(ValueError, match="held_out is not set"):
        HeldOut(config, ScoringHere(), Ranks())


def test_a_failed_score_is_none_and_told_and_all_failed_is_the_end(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Spotty(ScoringHere):
        """Scores every other picture."""

        def submit(self, *arguments: object) -> object:  # type: ignore[override]
            failed = (
                ScoringHere()._scorers["verifier"].score([np.zeros((9, 9, 3), np.uint8)], ["a red circle"])
            )
            pending = super().submit(*arguments)  # type: ignore[arg-type]

            def every_other(scores: list[Score]) -> list[Score]:
                return [failed[0] if index % 2 else score for index, score in enumerate(scores)]

            return lambda: {name: every_other(list(scores)) for name, scores in pending().items()}

    result = evaluated(configured(tmp_path, folder), Spotty()).result
    failed = [False, True, False, False, True, False, False, True]
    assert [verdict is None for verdict in result.correct] == failed
    assert result.unscored == {"jpeg": 3, "large": 3}
    why = "gave no score of 3 of 8 held-out pictures (update 7), most often since the verifier reads 32 x 32"
    assert [line.startswith(f"{name} {why}") for name, line in zip(("jpeg", "large"), caplog.messages)] == [
        True,
        True,
    ]
    with pytest.raises(Halted, match=r"verifier scored none .* not 16 x 16"):
        evaluated(configured(tmp_path, folder, "rewards.judge=verifier"))


def ranked(ranks: Ranks, config: TrainConfig, out: Path) -> None:
    found = evaluated(config, ranks=ranks)
    assert found.result.unscored == {}
    (out / f"{ranks.rank}.json").write_text(json.dumps(asdict(found.result)))
    np.save(out / f"{ranks.rank}.npy", found.pictures)


def test_ranks_share_the_draws(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """And what is told of the pictures, which rank 0 alone has."""
    config = configured(tmp_path, folder, "evaluation.draws=10", f"evaluation.features={clip_folder}")
    in_two_ranks(ranked, config, tmp_path)
    alone = evaluated(config)
    assert np.load(tmp_path / "1.npy").size == 0
    assert np.abs(np.load(tmp_path / "0.npy").astype(int) - alone.pictures).max() <= 1
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert tuple(first["correct"]) == alone.result.correct
    assert first["diversity"] == pytest.approx(alone.result.diversity, rel=0.05)
    for name, of_pictures in alone.result.statistics.items():
        assert first["statistics"][name] == pytest.approx(of_pictures, abs=0.05)
