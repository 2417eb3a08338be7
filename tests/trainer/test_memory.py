"""Planned memory: exact for weights, counted while tensors live, near what a real update is seen to take."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from tests.small_run import configured, in_two_ranks, memory_of, started
from tests.tiny import write_pipeline
from tests.tiny_families import write_preview_decoder
from trainer.config import TrainConfig
from trainer.costs import forget_peak, recent_peak_bytes
from trainer.loop import sample
from trainer.memory import Memory
from trainer.policy import Policy
from trainer.ranks import Ranks

ROOT = Path(__file__).parents[2]


def test_peak_is_what_stands_and_the_largest_phase() -> None:
    assert Memory({"a": 5, "b": 7}, {"sampling": 3, "learning": 11}).peak == 23


def test_weights_are_counted_exactly(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, pipelines["epsilon"], "model.dtype=bfloat16")
    lora = configured(tmp_path, pipelines["epsilon"], "model.lora={rank: 4}", "optimizer.ema_decay=0")
    whole, adapters = memory_of(config).standing, memory_of(lora).standing
    count = sum(p.numel() for p in Policy.load(config.model).parameters)
    assert whole["denoiser"] == 2 * count  # the reference
    assert whole["trained weights"] == whole["averaged weights"] == 4 * count
    assert whole["Adam's moments"] == 8 * count
    own = sum(p.numel() for p in Policy.load(lora.model).parameters)
    assert adapters["denoiser"] == 4 * count
    assert (adapters["trained weights"], adapters["averaged weights"]) == (4 * own, 0)
    assert whole["autoencoder"] == adapters["autoencoder"] / 2


def test_autocast_keeps_copies_of_trained_weights_during_an_evaluation(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    config = configured(tmp_path, pipelines["epsilon"], "model.dtype=bfloat16")
    adapters = configured(tmp_path, pipelines["epsilon"], "model.dtype=bfloat16", "model.lora={rank: 1}")
    count = sum(p.numel() for p in Policy.load(config.model).parameters if p.ndim > 1)
    more = memory_of(config).working["sampling"] - memory_of(adapters).working["sampling"]
    assert 0.9 * 2 * count < more < 1.1 * 2 * count


def test_what_waits_in_the_host_visits_when_it_is_needed(pipelines: dict[str, Path], tmp_path: Path) -> None:
    standing, offloaded = (
        memory_of(configured(tmp_path, pipelines["epsilon"], f"model.offload={value}"))
        for value in ("false", "true")
    )
    assert offloaded.standing["autoencoder"] == offloaded.standing["text encoders"] == 0
    visit = offloaded.working["decoding"] - standing.working["decoding"]
    assert visit == standing.standing["autoencoder"]


@pytest.mark.parametrize("kind", ["sd1", "sd3-without-t5", "sd35", "flux-schnell"])
def test_every_family_can_be_planned(families: dict[str, Path], tmp_path: Path, kind: str) -> None:
    options = ["model.image_size=16", "model.dtype=bfloat16", "model.gradient_checkpointing=true"]
    memory = memory_of(configured(tmp_path, families[kind], *options))
    assert all(size > 0 for size in memory.working.values())


def test_a_t5_that_is_left_out_takes_nothing(families: dict[str, Path], tmp_path: Path) -> None:
    planned = [
        memory_of(configured(tmp_path, families[kind], "model.image_size=16", *options)).standing
        for kind, options in (("sd3", ()), ("sd3", ("model.t5=false",)), ("sd3-without-t5", ()))
    ]
    assert planned[1] == planned[2]
    t5 = Policy.load(configured(tmp_path, families["sd3"]).model)._pipeline.text_encoder_3
    assert planned[0]["text encoders"] - planned[1]["text encoders"] == sum(
        parameter.nbytes for parameter in t5.parameters()
    )


def test_evaluations_are_counted(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A batch of held-out pictures takes what as many branches take, in as many steps."""

    def phases(*options: str) -> Mapping[str, int]:
        return memory_of(configured(tmp_path, pipelines["epsilon"], *options)).working

    usual = phases("evaluation.batch_size=null", "evaluation.draws=64")
    assert usual["evaluating"] == max(usual["sampling"], usual["decoding"])
    more = phases("evaluation.batch_size=12", "evaluation.draws=64")
    assert more["evaluating"] == pytest.approx(2 * usual["evaluating"], rel=0.2)
    assert phases("evaluation.batch_size=12", "evaluation.draws=6")["evaluating"] == usual["evaluating"]
    assert "evaluating" not in phases("prompts.held_out=null")


def test_previews_take_what_decodes_them_and_some_at_a_time(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    def planned(*options: str) -> Memory:
        given = ("prompts.held_out=null", "sampling.steps=4", "branching.branches=8", *options)
        return memory_of(configured(tmp_path, pipelines["epsilon"], *given))

    tiny = f"model.preview_decoder={write_preview_decoder(tmp_path / 'tiny')}"
    own, finished, early = planned(), planned(tiny), planned(tiny, "branching.end=3")
    assert own.standing["preview decoder"] == 0 < early.standing["preview decoder"]
    assert finished.working["decoding"] == own.working["decoding"]
    assert early.working["decoding"] < own.working["decoding"]
    assert planned("model.decoded_at_a_time=1").working["decoding"] < own.working["decoding"] / 2


def test_given_pictures_are_compressed_and_not_grown(pipelines: dict[str, Path], tmp_path: Path) -> None:
    options = ["method=standard", "loss.states=null", "data.source=pictures", "prompts.held_out=null"]
    working = memory_of(configured(tmp_path, pipelines["epsilon"], *options)).working
    assert set(working) == {"encoding", "compressing", "learning, with gradients"}
    assert all(size > 0 for size in working.values())


@pytest.mark.parametrize("method", ["ddpo", "grpo", "diffusion_nft"])
def test_the_policy_that_sampled_is_kept_beside_until_the_last_step(
    pipelines: dict[str, Path], tmp_path: Path, method: str
) -> None:
    """In an update's first step it is the policy."""
    kept = []
    for steps in (1, 2):
        options = [f"method={method}", "loss.states=null", f"optimizer.steps_per_update={steps}"]
        standing = memory_of(configured(tmp_path, pipelines["epsilon"], *options)).standing
        kept.append(standing["weights that sampled"])
    assert kept == [0, standing["trained weights"]]


def test_the_largest_share_of_the_prompts_counts(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of 5 prompts two ranks sample 2 and 3, the latter at a time if they may."""
    options = ["branching.prompts_per_micro_batch=4", "prompts.held_out=null"]
    shared, alone = (
        memory_of(
            configured(
                tmp_path,
                pipelines["epsilon"],
                *options,
                f"branching.prompts_per_update={prompts}",
                f"ranks.workers={workers}",
            )
        ).working["sampling"]
        for prompts, workers in ((5, 2), (3, 1))
    )
    assert shared == alone


def test_gradients_are_summed_in_one_message(pipelines: dict[str, Path], tmp_path: Path) -> None:
    memory = memory_of(configured(tmp_path, pipelines["epsilon"], "ranks.workers=2"))
    assert memory.working["summing gradients"] == 2 * memory.standing["trained weights"]


def test_one_rank_shares_nothing(pipelines: dict[str, Path], tmp_path: Path) -> None:
    alone, shared = (
        memory_of(configured(tmp_path, pipelines["epsilon"], f"ranks.sharding={sharding}"))
        for sharding in ("none", "full")
    )
    assert shared == alone


def test_ranks_hold_their_parts_of_every_weight(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Three ranks: of 16 rows the first holds 6, as torch.chunk deals them."""
    options = ["ranks.workers=3", "ranks.sharding=full", "model.dtype=bfloat16"]
    config = configured(tmp_path, pipelines["epsilon"], *options)
    memory, weights = memory_of(config), Policy.load(config.model).parameters
    own = sum(weight.chunk(3)[0].numel() for weight in weights)
    assert own > sum(weight.numel() for weight in weights) / 3
    assert memory.standing["denoiser"] == 2 * own
    assert memory.standing["trained weights"] == memory.standing["averaged weights"] == 4 * own
    assert memory.standing["Adam's moments"] == 8 * own


REAL_UPDATE = """
import gc, json, sys
from pathlib import Path
import torch
from tests.small_run import configured, started
from trainer.costs import forget_peak, recent_peak_bytes
from trainer.loop import sample

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torch.set_num_threads(1)
run = started(configured(Path(sys.argv[1]), Path("deploy/shapes/base"), *sys.argv[2:]))
lessons = [lesson for lesson, _ in sample(run)]
two = torch.zeros(2, dtype=torch.long)
text = lessons[0].branches.text.take(two)
run.policy.predict(torch.zeros(2, *run.policy.latent_shape), two, text, 1.0).sum().backward()
for parameter in run.policy.parameters:
    parameter.grad = None
gc.collect()
before = resident()
forget_peak()
run.learner.learn(lessons)
print(json.dumps({"taken": recent_peak_bytes() - before}))
"""
"""Kernels are loaded by a first small backward pass, so that what is left is the update's own."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_learning_takes_what_was_planned(tmp_path: Path, checkpointing: str) -> None:
    """Resident memory of a real update's learning, within 15 % of planned activations and gradients.

    Adam makes its moments when the activations are gone, in a first update. Blocks from
    64 KiB on are given back at once, or the C library's fragments would be measured, too.
    """
    options = ["sampling.steps=10", "sampling.guidance=1.0", "branching.branches=2", "prompts.held_out=null"]
    options += ["branching.prompts_per_update=6", "branching.prompts_per_micro_batch=6"]
    options += ["loss.states_per_branch=10", "optimizer.steps_per_update=1"]
    options.append(f"model.gradient_checkpointing={checkpointing}")
    memory = memory_of(configured(tmp_path, ROOT / "deploy/shapes/base", *options))
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    seen = subprocess.run(
        [sys.executable, "-c", REAL_UPDATE, str(tmp_path), *options],
        cwd=ROOT,
        env={**os.environ, **given_back},
        capture_output=True,
        text=True,
        check=True,
    )
    taken = json.loads(seen.stdout.splitlines()[-1])["taken"]
    assert taken == pytest.approx(memory.working["learning, with gradients"], rel=0.15)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def taken(ranks: Ranks, config: TrainConfig, out: Path) -> None:
    """Resident memory that a rank takes on when it has the whole denoiser, and learning."""
    run = started(config, ranks)
    lessons = [lesson for lesson, _ in sample(run)]
    run.learner.learn(lessons)  # makes the moments
    gc.collect()
    before = resident()
    with run.policy.sampling():
        gathered = resident() - before
    forget_peak()
    run.learner.learn(lessons)
    learning = recent_peak_bytes() - before
    (out / f"{ranks.rank}.json").write_text(json.dumps([gathered, learning]), encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_that_share_weights_take_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 million weights and hardly an activation: what is gathered, parts of gradients, blocks under way.

    The reference is not gathered to sample, and nobody has all gradients.
    """
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")
    model = write_pipeline(tmp_path / "model", "epsilon")
    settings = UNet2DConditionModel.load_config(model / "unet")
    UNet2DConditionModel.from_config({**settings, "block_out_channels": [64, 256]}).save_pretrained(
        model / "unet"
    )
    options = ["ranks.workers=2", "ranks.sharding=full", "prompts.held_out=null", "sampling.guidance=1.0"]
    options += ["branching.prompts_per_update=8", "branching.prompts_per_micro_batch=1"]
    options += ["optimizer.steps_per_update=1", "loss.states_per_branch=1"]
    config = configured(tmp_path, model, *options)
    planned = memory_of(config).working
    in_two_ranks(taken, config, tmp_path)
    for rank in range(2):
        gathered, learning = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert gathered == pytest.approx(planned["encoding"], rel=0.1)
        assert learning == pytest.approx(planned["learning, with gradients"], rel=0.15)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_memory_is_that_of_the_fewest_ranks(
    pipelines: dict[str, Path], tmp_path: Path, sharding: str
) -> None:
    """When nodes are lost each has more prompts at a time, and more of what ranks share."""
    options = ["branching.prompts_per_micro_batch=4", f"ranks.sharding={sharding}"]
    ranks = ["ranks.workers=2"], ["ranks.workers=4", "ranks.min_workers=2"]
    two, left = (memory_of(configured(tmp_path, pipelines["epsilon"], *options, *of)) for of in ranks)
    assert left == two
