"""Given pictures are lessons like others: standard fine-tuning draws them, pairs prefer the chosen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.captioned import picture, write_folder
from tests.small_run import (
    CPU,
    ScoringHere,
    configured,
    in_two_ranks,
    relative_difference,
    started,
    weights_of,
)
from tests.tiny import TEXT_WIDTH
from trainer.config import ModelConfig, TrainConfig, load_config
from trainer.data.pairs import PreferencePair
from trainer.data.rows import ImageText
from trainer.driver import begin, check, conclude
from trainer.given import lesson_of, open_stream
from trainer.loop import run, sample
from trainer.methods import Terms
from trainer.metrics import read_metrics
from trainer.plan import as_table, plan
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.replay import Lesson
from trainer.run import Run
from trainer.run_folder import RunFolder
from trainer.scoring import Unscored


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    colours = ("red", "green", "blue", "white", "gray", "purple")
    rows = [{"text": f"a {colour} picture", "image": picture(colour, 16, 16)} for colour in colours]
    return write_folder(tmp_path / "captioned", rows)


@pytest.fixture
def preferred(tmp_path: Path) -> Path:
    rows = [
        {"text": f"a {chosen} picture", "image_chosen": picture(chosen), "image_rejected": picture("black")}
        for chosen in ("red", "green", "blue", "white")
    ]
    return write_folder(tmp_path / "preferred", rows)


def config_of(tmp_path: Path, pipeline: Path, method: str, source: Path, *more: str) -> TrainConfig:
    return configured(tmp_path, pipeline, f"method={method}", f"data.source={source}", *more)


def told_of(begun: Run, lesson: Lesson) -> torch.Tensor:
    """The size ids that reach the UNet while a lesson is learned, a row for each picture it evaluates."""
    told: list[torch.Tensor] = []
    hook = begun.policy.denoiser.register_forward_pre_hook(
        lambda _, inputs, named: told.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    for part in begun.learner.method.parts(lesson, 0):
        part()
    hook.remove()
    return torch.cat(told)


def time_ids(begun: Run, *rows: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]) -> torch.Tensor:
    """What diffusers makes of original sizes, crops and target sizes."""
    made = begun.policy._pipeline._get_add_time_ids
    return torch.cat([made(*row, torch.int64, text_encoder_projection_dim=TEXT_WIDTH) for row in rows])


def learned(begun: Run, steps: int = 8) -> tuple[float, float]:
    """The loss on one update's lessons before and after learning them."""
    lessons = [lesson for lesson, _ in sample(begun)]

    def loss() -> float:
        terms: list[Terms] = [part() for lesson in lessons for part in begun.learner.method.parts(lesson, 0)]
        return sum(one.loss.item() for one in terms)

    before = loss()
    for _ in range(steps):
        begun.learner.learn(lessons)
    return before, loss()


def test_pictures_become_latents_and_come_back(pipelines: dict[str, Path], tmp_path: Path) -> None:
    policy = started(configured(tmp_path, pipelines["epsilon"])).policy
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    pictures[1] = 255
    latents = policy.compress(pictures)
    assert latents.shape == (2, *policy.latent_shape)
    vae = policy._pipeline.vae
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    expected = vae.encode(scaled.float()).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents, expected.detach())


def test_standard_fine_tuning_learns_captioned_pictures(
    pipelines: dict[str, Path], tmp_path: Path, captioned: Path
) -> None:
    begun = started(config_of(tmp_path, pipelines["epsilon"], "standard", captioned))
    before, after = learned(begun)
    assert after < 0.9 * before


def test_given_pictures_are_learned_without_guidance(
    pipelines: dict[str, Path], tmp_path: Path, captioned: Path
) -> None:
    """Learned as the output under guidance 5 they made a model worse whose pictures they were."""
    losses = []
    for guidance in (1, 5):
        options = (f"sampling.guidance={guidance}", "prompts.held_out=null")
        begun = started(
            config_of(tmp_path / str(guidance), pipelines["epsilon"], "standard", captioned, *options)
        )
        losses.append(learned(begun, steps=1))
    assert losses[0] == losses[1]


def test_offline_pairs_prefer_the_chosen(pipelines: dict[str, Path], tmp_path: Path, preferred: Path) -> None:
    begun = started(config_of(tmp_path, pipelines["epsilon"], "diffusion_dpo", preferred))
    before, after = learned(begun)
    assert before == pytest.approx(4 * 0.693147, rel=1e-3)
    assert after < 0.9 * before
    (lesson, _), *_ = sample(begun)
    chosen, rejected = lesson.branches.clean.unbind(1)
    black = begun.policy.compress(np.zeros((2, 16, 16, 3), np.uint8))
    torch.testing.assert_close(rejected, black)
    assert not torch.allclose(chosen, rejected)


def test_a_whole_run_of_given_pictures_scores_none(
    pipelines: dict[str, Path], tmp_path: Path, captioned: Path
) -> None:
    config = config_of(tmp_path, pipelines["epsilon"], "standard", captioned)
    assert run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)
    lines = read_metrics(config.run_folder / "metrics.jsonl")
    assert [line["reward"] for line in lines] == [None] * 3
    assert all(line["loss"] > 0 for line in lines)
    assert [(line["images_given"], line["images_scored"]) for line in lines] == [(4, 0)] * 3
    assert all(line["images_per_second"] > 0 for line in lines)
    assert RunFolder(config.run_folder).is_finished


@pytest.mark.parametrize("method", ["standard", "diffusion_dpo"])
def test_given_pictures_are_learned_without_prompts_and_rewards(
    pipelines: dict[str, Path], tmp_path: Path, captioned: Path, preferred: Path, method: str
) -> None:
    source = captioned if method == "standard" else preferred
    config = config_of(tmp_path, pipelines["epsilon"], method, source, "prompts={}", "rewards={}")
    assert as_table(config, plan(config)).endswith("Pictures are given: nothing is scored")
    folder = check(config)
    begin(config, folder)
    assert load_config(folder.config_path) == config
    assert run(config, scoring=Unscored(), ranks=Ranks(), device=CPU)
    page = Path(conclude(folder).removeprefix("Report: ")).read_text(encoding="utf-8")
    assert "given images learned" in page
    assert not list(folder.path.glob("evaluations/*"))


def updated(begun: Run, dealt: Path) -> None:
    """Make an update and a checkpoint; write down its captions, their seeds, how many rows are left out."""
    sampled = sample(begun)
    left_out = begun.account(sampled)["rows_left_out"]
    lessons = [lesson for lesson, _ in sampled]
    begun.learner.learn(lessons)
    begun.update += 1
    own = [(p.text, seed) for lesson in lessons for p, seed in zip(lesson.branches.prompts, lesson.seeds)]
    every = [pair for of_rank in begun.ranks.gather(own) for pair in of_rank]
    if begun.ranks.is_main:
        with dealt.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in (*every, left_out))
    begun.checkpoint()


def begin_on_two(ranks: Ranks, config: TrainConfig, dealt: Path) -> None:
    updated(started(config, ranks), dealt)


def test_pictures_and_their_seeds_are_the_same_on_any_number_of_ranks(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """An update of two micro-batches a rank, and one rank that goes on: as one rank makes both updates.

    Both ranks know of the row without caption; one meets the broken picture, and nobody meets it again.
    """
    pipeline, whole = pipelines["epsilon"], picture("red", 400, 400)
    rows = [{"text": f"picture {n}", "image": picture("red", 16 + n, 16)} for n in range(6)]
    rows.insert(5, {"text": "broken", "image": whole[:-200]})
    captioned = write_folder(tmp_path / "captioned", [*rows, {"text": " ", "image": whole}])
    options = ("branching.prompts_per_micro_batch=1", "data.crop=random", "optimizer.steps_per_update=1")
    two, one = (
        config_of(tmp_path / name, pipeline, "standard", captioned, *options) for name in ("two", "one")
    )
    in_two_ranks(begin_on_two, two, two.run_folder / "dealt")
    updated(started(one), one.run_folder / "dealt")
    for config in (two, one):
        updated(started(config), config.run_folder / "dealt")
    found, expected = ((config.run_folder / "dealt").read_text(encoding="utf-8") for config in (two, one))
    assert found == expected
    assert [line for line in expected.splitlines() if "picture" not in line] == ["2", "2"]
    assert len(set(expected.splitlines())) == 8 + 1
    assert relative_difference(weights_of(one), weights_of(two), pipeline) < 1e-4


def test_sdxl_is_told_how_captioned_pictures_were_scaled_and_cropped(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """20 rows of 40 become 16 of 32, of which columns 8 to 23 are kept; 24 of 12 become 32 of 16."""
    pictures = {
        "wide": picture("red", 40, 20),
        "tall": picture("blue", 12, 24),
        "whole": picture("gray", 16, 16),
    }
    source = write_folder(tmp_path / "a", [{"text": name, "image": one} for name, one in pictures.items()])
    options = ("branching.prompts_per_update=3", "branching.prompts_per_micro_batch=3")
    begun = started(config_of(tmp_path, pipelines["epsilon"], "standard", source, *options))
    expected = {
        "wide": ((20, 40), (0, 8), (16, 16)),
        "tall": ((24, 12), (8, 0), (16, 16)),
        "whole": ((16, 16), (0, 0), (16, 16)),
    }
    (lesson, _), *_ = sample(begun)
    rows = [expected[prompt.text] for prompt in lesson.branches.prompts for _ in range(2)]  # states of each
    assert torch.equal(told_of(begun, lesson), time_ids(begun, *rows))


def test_sdxl_is_told_of_each_picture_of_a_pair(
    pipelines: dict[str, Path], tmp_path: Path, preferred: Path
) -> None:
    """Two pairs of one prompt, four pictures with sizes of their own; one UNet is policy and reference."""
    sizes = [((20 + n, 40), (n, 8), (16, 16)) for n in range(4)]
    pictures = [ImageText("a", np.zeros((16, 16, 3), np.uint8), *told) for *told, _ in sizes]
    options = ("model.lora={rank: 4}", "branching.prompts_per_update=2")
    begun = started(config_of(tmp_path, pipelines["epsilon"], "diffusion_dpo", preferred, *options))
    pairs = [PreferencePair("a", *pictures[:2]), PreferencePair("a", *pictures[2:])]
    lesson = lesson_of(begun.policy, pairs, (1, 2))
    chosen_then_rejected = [sizes[n] for n in (0, 2, 1, 3) for _ in range(2)]  # states of each
    by_both = time_ids(begun, *(2 * chosen_then_rejected))
    assert torch.equal(told_of(begun, lesson), by_both)
    second = lesson.branches.kept(torch.tensor([[1], [1]])).told(torch.tensor([1]), torch.tensor([0]))
    assert torch.equal(second.sizes, time_ids(begun, sizes[3]))


def test_in_buckets_the_target_is_the_buckets_size(pipelines: dict[str, Path], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", [{"text": "wide", "image": picture("red", 60, 20)}])
    options = ("data.buckets=true", "branching.prompts_per_update=1", "branching.prompts_per_micro_batch=1")
    begun = started(config_of(tmp_path, pipelines["epsilon"], "standard", source, *options))
    (lesson, _), *_ = sample(begun)
    _, _, _, _, height, width = told_of(begun, lesson)[0].tolist()
    assert (height, width) == tuple(2 * side for side in lesson.branches.clean.shape[-2:])
    assert height < 16 < width


@pytest.mark.parametrize(("name", "step"), [("sd1", 2), ("sd3", 4), ("flux-dev", 4)])
def test_buckets_have_sizes_that_the_model_draws(
    families: dict[str, Path], tmp_path: Path, name: str, step: int
) -> None:
    """The proportions of one of SDXL's resolutions, which at this size has sides of 14 and 18 pixels."""
    source = write_folder(tmp_path / "a", [{"text": "wide", "image": picture("red", 72, 56)}])
    options = ("data.buckets=true", "branching.prompts_per_update=1", "branching.prompts_per_micro_batch=1")
    config = config_of(tmp_path, families[name], "standard", source, "model.image_size=16", *options)
    begun = started(config)
    (lesson, _), *_ = sample(begun)
    assert all(side % (step // 2) == 0 for side in lesson.branches.clean.shape[-2:])
    assert begun.learner.learn([lesson])["loss"] > 0


@pytest.mark.parametrize("name", ["sdxl", "sd1", "sd3", "flux-dev"])
def test_only_sdxl_answers_to_sizes(families: dict[str, Path], name: str) -> None:
    policy = Policy.load(ModelConfig(path=str(families[name]), image_size=16))
    text, timesteps = policy.encode(["a red circle"] * 2), policy.schedule(4).timesteps_T[:2]
    sample = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    own, cropped = [16, 16, 0, 0, 16, 16], [20, 40, 0, 8, 16, 16]
    with torch.no_grad():
        untold = policy.predict(sample, timesteps, text, 3.0)
        first, second = (
            (policy.predict(sample, timesteps, text.of_sizes(torch.tensor(rows)), 3.0) - untold)
            .abs()
            .amax((1, 2, 3))
            for rows in ([own, own], [own, cropped])
        )
    assert first.max() == second[0] == 0
    assert (second[1] > 1e-3) == (name == "sdxl")


def test_a_lesson_keeps_prompts_and_seeds(
    pipelines: dict[str, Path], tmp_path: Path, captioned: Path
) -> None:
    begun = started(config_of(tmp_path, pipelines["epsilon"], "standard", captioned))
    assert begun.config.data is not None
    items = open_stream(begun.config, begun.config.data, begun.policy, Ranks()).take(3)
    lesson = lesson_of(begun.policy, items, (1, 2, 3))
    assert [prompt.text for prompt in lesson.branches.prompts] == [item.prompt for item in items]
    assert lesson.selection.weights_PK.tolist() == [[1.0]] * 3
    assert lesson.seeds == (1, 2, 3)
