"""The training configuration: defaults, cross-checks, and that it survives being saved."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from trainer.config import ConfigError, TrainConfig, load_config, save_config

MINIMAL = """
model: {path: deploy/shapes/base}
prompts: {train: deploy/shapes/prompts/train.txt}
rewards: {services: deploy/rewards.yaml, weights: {clip: 1}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(MINIMAL, encoding="utf-8")
    return file


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


def test_defaults_fill_what_a_short_file_leaves_out(path: Path) -> None:
    config = load_config(path)
    assert config.method == "rlhf_sharpening"
    assert config.model.lora is not None
    assert config.prompts.held_out is None
    assert config.preview_steps == (config.sampling.steps - 1,)


def test_the_saved_configuration_is_read_back_unchanged(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["model.lora=null", "branching.previews=[3, -1]", "optimizer.lr=1e-5"])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
    assert config.optimizer.lr == 1e-5  # YAML reads 1e-5 as text; it has to become a number all the same


def test_a_disk_without_room_leaves_the_saved_configuration(path: Path) -> None:
    config = load_config(path)
    save_config(config, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_config(config, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sampling.step=3"], 'unknown key "sampling.step"; did you mean "sampling.steps"?'),
        (["model.lora.rnk=3"], 'did you mean "model.lora.rank"?'),
        (["learning_rate=3"], 'unknown key "learning_rate"'),
        (["rewards.services=null"], "rewards: set one of services"),
        (["rewards.weights={}"], "rewards: weights names no training reward"),
        (
            ["prompts={}"],
            "method=rlhf_sharpening learns from pictures that it draws of prompts: set prompts.t",
        ),
        (["rewards={}"], "method=rlhf_sharpening learns from scores of its pictures: set rewards.weights, "),
        (
            ["method=standard", "data.source=x", "rewards={}", "prompts={held_out: y}"],
            "pictures of prompts.held_out are judged: set rewards.weights, and rewards.services or rewards.",
        ),
        (["rewards.weights.clip=.nan"], "rewards.weights.clip: "),
        (["selection.by=luck"], "selection.by: should be 'reward' or 'random'"),
        (["sampling.steps=4", "branching.previews=[4]"], "branching.previews must lie within the 4 steps"),
        (["branching.start=5", "branching.previews=[4]"], "must not come before branching.start"),
        (
            ["branching.start=5", "branching.previews=[5]"],
            "branching.previews must have one after branching.start=5: branches part by the noise",
        ),
        (["branching.start=19"], "branching.previews must have one after branching.start=19"),
        (["branching.start=5", "sampling.eta=0"], "set sampling.eta > 0 or branching.start = 0"),
        (["branching.end=21"], "after branches have parted, 1 or more, and within the 20 steps"),
        (["branching.start=5", "branching.end=6"], "after branches have parted, 7 or more"),
        (["branching.end=6", "branching.previews=[6]"], "branching.previews must lie within the 6 steps"),
        (["method=standard"], "learns from captioned pictures: set data.source"),
        (["method=ddpo", "data.source=x"], "method=ddpo learns from its own branches; leave out data"),
        (["method=ddpo", "loss.states=renoised"], "learns at visited states; leave out loss.states"),
        (["method=d3po", "sampling.eta=0"], "needs steps with noise: set sampling.eta > 0"),
        (["branching.end=6", "loss.replayed_steps=[2, 7]"], "between branching.start and the 6 steps"),
        (["method=standard", "data.source=pictures", "branching.end=6"], "leave out branching.end"),
        (["ranks.workers=9"], "must be ranks.workers or more"),
        (["ranks.min_workers=2"], "must not be more than ranks.workers"),
        (
            ["ranks.workers=2", "ranks.gpus_per_worker=0.5"],
            "gpus_per_worker=0.5 puts ranks on one GPU, which NCCL refuses: set ranks.gpus_per_worker=1",
        ),
        (["ranks.sharding=full"], "adapters are not sharded"),
        (
            ["ranks.sharding=full", "model.lora=null", "optimizer.moments=8-bit"],
            "8-bit moments are not sharded",
        ),
        (
            ["ranks.sharding=full", "model.lora=null", "model.states_with_gradients=2"],
            "evaluate in step: set loss.branches_per_micro_batch",
        ),
        (["method=ddpo", "selection.effective_branches=2"], "method=ddpo does not weigh branches"),
        (["method=grpo", "sampling.solver=dpmpp_2m"], "set sampling.solver=ddim"),
        (
            ["method=sft_sharpening", "selection.effective_branches=2", "selection.temperature=1"],
            "selection.effective_branches or selection.temperature, not both",
        ),
        (
            ["method=sft_sharpening", "selection.effective_branches=5"],
            "at most the 4 branches that grow to their end",
        ),
        (
            ["branching.previews=[5, -1]", "branching.stop={after: 6, keep: 2}"],
            "branching.stop.after=6 must be among branching.previews, which are 5, 19, and not the last",
        ),
        (["branching.stop={after: 19, keep: 2}"], "and not the last"),
        (
            ["branching.start=5", "branching.previews=[5, -1]", "branching.stop={after: 5, keep: 2}"],
            "branching.stop.after=5 must come after branching.start: branches part by the noise",
        ),
        (
            ["branching.previews=[5, -1]", "branching.stop={after: 5, keep: 4}"],
            "branching.stop.keep must be less than branching.branches=4",
        ),
        (
            ["method=ddpo", "branching.previews=[5, -1]", "branching.stop={after: 5, keep: 2}"],
            "method=ddpo learns from all branches; leave out branching.stop",
        ),
        (
            ["method=standard", "data.source=pictures", "budget.images_scored=100"],
            "budget.images_scored would never end it",
        ),
        (
            ["method=standard", "data={source: pictures, buckets: true}", "ranks.workers=4"],
            "make a rank's 2 prompts (prompts_per_update / ranks.workers) a multiple of "
            "branching.prompts_per_micro_batch=4",
        ),
        (["watch.on_gap=stop"], "evaluations during training: set prompts.held_out"),
        (
            ["watch.on_gap=stop", "evaluation.along=1", "prompts.held_out=held-out.txt"],
            "needs another view: set rewards.judge or rewards.shadows",
        ),
        (
            [
                "watch.on_gap=raise_kl",
                "evaluation.along=1",
                "prompts.held_out=held-out.txt",
                "rewards.shadows=[jpeg]",
            ],
            "multiplies loss.kl_weight: set one above 0",
        ),
        (["evaluation.draws=7"], "must be a multiple of evaluation.pictures_per_prompt"),
        (["evaluation.draws=4", "prompts.held_out=held-out.txt"], "must be of two prompts or more"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(
    path: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", list(sections(TrainConfig)), ids=lambda section: section.__name__)
def test_every_setting_says_what_it_is(section: type[BaseModel]) -> None:
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert undescribed == []
