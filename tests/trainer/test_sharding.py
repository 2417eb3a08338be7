"""Two ranks that share weights do what one does with all of them: updates, uneven parts, resuming, saving."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.small_run import (
    CPU,
    ScoringHere,
    StoppingAt,
    configured,
    in_two_ranks,
    relative_difference,
    started,
    weights_of,
)
from trainer.config import TrainConfig
from trainer.loop import run, sample
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.sharding import Rows, is_sharded, joined, own, part, whole

SHARED = ("ranks.workers=2", "ranks.sharding=full")
UPDATES = {
    "even": ("method=sft_sharpening",),
    "uneven": ("method=rlhf_sharpening",),
    "compiled": ("method=sft_sharpening", "model.compile=true"),
    "flux": ("method=rlhf_sharpening", "model.image_size=16"),
}


class Spotty(ScoringHere):
    """Has no scores for the pictures of its n-th request."""

    def __init__(self, request: int) -> None:
        super().__init__()
        self._left = request

    def submit(self, images: Any, prompts: Any, rewards: Any) -> Any:
        self._left -= 1
        if self._left:
            return super().submit(images, prompts, rewards)
        pending = super().submit(images, prompts, ["verifier"])
        return lambda: dict.fromkeys(rewards, pending()["verifier"])


def updated(ranks: Ranks, configs: dict[str, TrainConfig], out: Path) -> None:
    """An update of each kind. In the uneven one the second half of the prompts has no scores."""
    for name in UPDATES:
        begun = started(configs[name], ranks)
        if name == "uneven" and ranks.rank == ranks.world_size - 1:
            begun.scoring = Spotty(2 if ranks.is_main else 1)
        learned = begun.learner.learn([lesson for lesson, _ in sample(begun)])
        parameters = begun.policy.parameters
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
        assert held / sum(p.numel() for p in parameters) == pytest.approx(1 / ranks.world_size, rel=0.1)
        weights = whole(begun.learner.state_dict()["parameters"], keep=ranks.is_main)
        assert bool(weights[0].numel()) == ranks.is_main
        if ranks.is_main:
            torch.save({"weights": weights, "learned": learned}, out / f"{name}.pt")


def go(config: TrainConfig, scoring: Any = None, ranks: Ranks | None = None) -> bool:
    return run(config, scoring=scoring or ScoringHere(), ranks=ranks or Ranks(), device=CPU)


def dealt() -> None:
    """Rows that any number of ranks wrote, dealt to two: unevenly, none to the second, evenly."""
    mesh = init_device_mesh("cpu", (2,))
    for written in ((2, 2, 1), (1,), (0, 3, 0, 1)):
        tensor = torch.arange(3.0 * sum(written)).reshape(-1, 3)
        own = distribute_tensor(tensor, mesh, [Shard(0)])
        found = part(Rows(tensor.split(written)), own)
        assert isinstance(found, DTensor)
        assert found.shape == tensor.shape
        assert torch.equal(found.to_local(), own.to_local())


def on_two(ranks: Ranks, configs: dict[str, TrainConfig], out: Path) -> None:
    """All that two ranks do: updates, a run in two halves, a run begun, a run that one rank began."""
    warnings.filterwarnings("error", "FSDP2-wrapped module")
    dealt()
    # Blocks are traced as for any backend, and run by torch: its compiler takes minutes.
    torch._dynamo.config.debug_backend_override = ">=0:eager"
    updated(ranks, configs, out)
    assert not go(configs["kept"], StoppingAt(configs["kept"].run_folder, 3), ranks)
    RunFolder(configs["kept"].run_folder).reopen()
    assert go(configs["kept"], None, ranks)
    assert not go(configs["shrunk"], StoppingAt(configs["shrunk"].run_folder, 3), ranks)
    assert go(configs["grown"], None, ranks)


@pytest.fixture(scope="module")
def base(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


@pytest.fixture(scope="module")
def begins(families: dict[str, Path]) -> dict[str, Path]:
    """The model that each update starts from."""
    return {**dict.fromkeys(UPDATES, families["sdxl"]), "flux": families["flux-dev"]}


@pytest.fixture(scope="module")
def done(
    base: Path, begins: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, TrainConfig]]:
    """The folder with what one rank and two ranks left, and the settings."""
    folder = tmp_path_factory.mktemp("sharding")
    parts = ("rewards.failure_budget=1", "loss.branches_per_micro_batch=2", "loss.kl_weight=0.1")
    configs = {
        name: configured(folder / name, begins[name], *SHARED, *parts, *options)
        for name, options in UPDATES.items()
    }
    for name in ("unbroken", "shrunk", "grown", "kept"):
        configs[name] = configured(folder / name, base, *SHARED, "updates=2")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    assert not go(configs["grown"], StoppingAt(configs["grown"].run_folder, 4))
    RunFolder(configs["grown"].run_folder).reopen()
    in_two_ranks(on_two, configs, folder / "two")
    RunFolder(configs["shrunk"].run_folder).reopen()
    assert go(configs["shrunk"])
    assert go(configs["unbroken"])
    configs["compiled"] = configs["even"]  # one rank shows what it is without
    updated(Ranks(), configs, folder / "one")
    return folder, configs


@pytest.mark.parametrize("name", UPDATES)
def test_two_ranks_that_share_weights_learn_what_one_does(
    done: tuple[Path, dict[str, TrainConfig]], begins: dict[str, Path], name: str
) -> None:
    one, two = (torch.load(done[0] / count / f"{name}.pt", weights_only=True) for count in ("one", "two"))
    assert two["learned"] == pytest.approx(one["learned"], rel=1e-3)
    assert relative_difference(one["weights"], two["weights"], begins[name]) < 1e-3


@pytest.mark.parametrize("name", ["shrunk", "grown", "kept"])
def test_a_run_goes_on_with_any_number_of_ranks(
    done: tuple[Path, dict[str, TrainConfig]], base: Path, name: str
) -> None:
    configs = done[1]
    assert relative_difference(weights_of(configs["unbroken"]), weights_of(configs[name]), base) < 1e-3


def test_what_two_ranks_saved_is_a_plain_pipeline(done: tuple[Path, dict[str, TrainConfig]]) -> None:
    pictures = []
    for name in ("unbroken", "grown"):
        folder = done[1][name].run_folder / "pipeline"
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
        generator = torch.Generator().manual_seed(0)
        drawn = pipeline("a red circle", num_inference_steps=3, generator=generator, output_type="pt")
        pictures.append(drawn.images)
    torch.testing.assert_close(*pictures, atol=1e-3, rtol=0)


def test_what_is_not_sharded_is_left_alone() -> None:
    tensor = torch.ones(2)
    state = {"a": [tensor, 3], "b": None}
    assert whole(state) == state
    assert own(state, is_main=True) == state
    assert own(state, is_main=False) == {"a": [None, None], "b": None}
    assert joined([state]) == state
    assert not is_sharded(state)


def test_a_part_is_a_copy() -> None:
    """What it was read from may be a file that is deleted."""
    tensor = torch.ones(2)
    for saved in (tensor, Rows((tensor,))):
        found = part(saved, torch.zeros(2))
        assert torch.equal(found, tensor)
        assert found.data_ptr() != tensor.data_ptr()


def test_rows_are_taken_across_pieces() -> None:
    rows = Rows((torch.tensor([[0.0], [1.0]]), torch.empty(0, 1), torch.tensor([[2.0], [3.0], [4.0]])))
    assert rows.shape == (5, 1)
    assert rows.take(1, 4).flatten().tolist() == [1, 2, 3]
    assert rows.take(3, 5).flatten().tolist() == [3, 4]
    assert rows.take(5, 5).shape == (0, 1)


def test_ranks_that_kept_different_things_are_not_joined() -> None:
    with pytest.raises(ValueError, match="shorter"):
        joined([[torch.ones(1), torch.ones(1)], [torch.ones(1)]])
