"""A finished model is found where a run left it, drawn from its seeds, and evaluated as its run did."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.small_run import CPU, ScoringHere, configured
from trainer.config import ConfigError, ModelConfig, SamplingConfig, TrainConfig
from trainer.data.files import DataError
from trainer.data.prompts import PromptFileError
from trainer.families.family import ModelError
from trainer.finished import Draws, config_of, evaluate, open_policy, sample, sampling_of, searched_with
from trainer.loop import run
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder

TRAINED = pytest.mark.parametrize("lora", ["null", "{rank: 2, alpha: 4}"], ids=["full", "lora"])


def trained(tmp_path: Path, pipeline: Path, lora: str = "null") -> TrainConfig:
    config = configured(tmp_path, pipeline, f"model.lora={lora}", "updates=1", "optimizer.ema_decay=0")
    (config.run_folder / "config.yaml").write_text(
        (tmp_path / "settings.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)
    return config


def test_a_folder_that_is_not_there_is_no_id_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="runs/mine does not exist, though runs does; give a run or diff"):
        open_policy(Path("runs/mine"))


@TRAINED
def test_the_saved_model_gives_the_evaluation_of_its_run(
    pipelines: dict[str, Path], tmp_path: Path, lora: str
) -> None:
    config = trained(tmp_path, pipelines["epsilon"], lora)
    found = evaluate(open_policy(config.run_folder), config, ScoringHere())
    after = RunFolder(config.run_folder).load_evaluation("after")
    before = RunFolder(config.run_folder).load_evaluation("before")
    assert found.scores["jpeg"] == pytest.approx(after.scores["jpeg"], abs=0.01)
    assert found.scores != before.scores


def test_a_model_runs_as_its_run_did_or_as_is_wanted(
    pipelines: dict[str, Path], tmp_path: Path, families: dict[str, Path]
) -> None:
    """Which model it is, the folder says: the section of other settings may name another."""
    elsewhere = ModelConfig(path=str(families["flux-dev"]), dtype="bfloat16", image_size=12, tiled=True)
    for name, lora in (("full", "null"), ("lora", "{rank: 2}")):
        config = trained(tmp_path / name, pipelines["epsilon"], lora)
        as_trained, policy = open_policy(config.run_folder), open_policy(config.run_folder, elsewhere)
        assert next(as_trained.denoiser.parameters()).dtype == torch.float32
        assert policy._pipeline.unet.conv_in.weight.dtype == torch.bfloat16
        assert (as_trained.image_size, policy.image_size) == ((16, 16), (12, 12))
        assert (as_trained._pipeline.vae.use_tiling, policy._pipeline.vae.use_tiling) == (False, True)
    sd3 = ModelConfig(path=str(families["sd3"]), t5=False)
    assert open_policy(families["sd3"], sd3)._pipeline.text_encoder_3 is None
    assert open_policy(families["sd3"])._pipeline.text_encoder_3 is not None


def test_a_model_is_a_run_folder_or_a_pipeline(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = pipelines["epsilon"]
    assert open_policy(folder).parameters == []
    config = configured(tmp_path, folder)
    (config.run_folder / "config.yaml").touch()
    with pytest.raises(ModelError, match="is an unfinished run; go on with `sharpen train"):
        open_policy(config.run_folder)
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        open_policy(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        open_policy(tmp_path / "nowhere" / "at" / "all")


def test_settings_come_from_the_run_or_from_a_file(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = pipelines["epsilon"]
    config = configured(tmp_path, folder)
    settings = tmp_path / "settings.yaml"
    assert config_of(folder, settings, ["seed=9"]).seed == 9
    with pytest.raises(ModelError, match="say with --config which prompts and rewards"):
        config_of(folder, None, [])
    with pytest.raises(ConfigError, match=r"add --set prompts\.held_out=FILE"):
        config_of(folder, settings, ["prompts.held_out=null"])
    with pytest.raises(PromptFileError, match="cannot be read"):
        config_of(folder, settings, ["prompts.held_out=nowhere.txt"])
    (config.run_folder / "config.yaml").write_text(settings.read_text(encoding="utf-8"), encoding="utf-8")
    assert config_of(config.run_folder, None, []) == config


def test_held_out_prompts_that_are_left_out_are_told(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(tmp_path, pipelines["epsilon"])
    with (tmp_path / "held-out.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": null}\n')
    config_of(tmp_path, tmp_path / "settings.yaml", [])
    expected = f"1 of 7 rows of {tmp_path}/held-out.jsonl are left out: 1 whose prompt is missing"
    assert capsys.readouterr().err.startswith(expected)
    with pytest.raises(DataError, match="line 7: prompt is missing or not text; repair it"):
        config_of(tmp_path, tmp_path / "settings.yaml", ["prompts.strict=true"])


def test_pictures_depend_on_their_seed_alone(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder, prompts = pipelines["epsilon"], ["a red circle", "two blue squares"]
    draws = Draws(pictures=2, seed=5, steps=2, guidance=1.0)
    paths = sample(folder, prompts, folder=tmp_path / "a", draws=draws)
    assert [path.name for path in paths] == ["00-5.png", "00-6.png", "01-5.png", "01-6.png"]
    (again,) = sample(folder, prompts[:1], folder=tmp_path / "b", draws=Draws(1, 6, 2, 1.0))
    assert again.read_bytes() == (tmp_path / "a" / "00-6.png").read_bytes()
    assert len({path.read_bytes() for path in paths}) == 4
    with Image.open(again) as picture:
        assert picture.size == Policy.load(configured(tmp_path, folder).model).image_size


def test_pictures_of_an_earlier_call_stay(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Prompts are numbered on; what else is in the folder does not matter."""
    (tmp_path / "99-of-mine.png").touch()
    draws = Draws(1, steps=1)
    first = sample(pipelines["epsilon"], ["a cat", "a dog"], folder=tmp_path, draws=draws)
    before = [path.read_bytes() for path in first]
    (again,) = sample(pipelines["epsilon"], ["a red circle"], folder=tmp_path, draws=draws)
    assert again.name == "02-0.png"
    assert [path.read_bytes() for path in first] == before


def test_a_run_samples_as_it_was_trained(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = trained(tmp_path, pipelines["epsilon"])
    torch.manual_seed(1)  # the pictures' seeds decide, not the process's
    usual = sample(config.run_folder, ["a cat"], folder=tmp_path / "a", draws=Draws(1))
    same = sample(config.run_folder, ["a cat"], folder=tmp_path / "b", draws=Draws(1, 0, 3, 1.5))
    other = sample(config.run_folder, ["a cat"], folder=tmp_path / "c", draws=Draws(1, 0, 3, 7.5))
    assert usual[0].read_bytes() == same[0].read_bytes() != other[0].read_bytes()


@pytest.mark.parametrize("wrong", [{"pictures": 0}, {"steps": 0}])
def test_nothing_cannot_be_drawn(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Draws(**wrong)


def test_a_search_is_judged_by_a_runs_own_rewards_or_by_others(tmp_path: Path) -> None:
    model = tmp_path / "model"
    other = searched_with(model, None, "http://rewards:8000", ["clip=2", "jpeg"])
    assert other.rewards.url == "http://rewards:8000"
    assert other.rewards.weights == {"clip": 2.0, "jpeg": 1.0}
    again = searched_with(model, other, "deploy/rewards.yaml", [])
    assert (again.rewards.url, again.rewards.services) == (None, Path("deploy/rewards.yaml"))
    assert again.rewards.weights == other.rewards.weights


def test_a_search_without_rewards_or_with_a_wrong_weight_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say with --rewards where rewards are and with --reward which"):
        searched_with(tmp_path, None, "http://rewards:8000", [])
    with pytest.raises(ConfigError, match="--reward clip=much: the weight must be a number"):
        searched_with(tmp_path, None, "http://rewards:8000", ["clip=much"])


def test_what_is_not_wanted_otherwise_is_as_in_the_run() -> None:
    assert sampling_of(None, steps=None, guidance=2.0) == SamplingConfig(steps=30, guidance=2.0)
    with pytest.raises(ConfigError) as refused:
        sampling_of(None, eta=2.0)
    assert str(refused.value) == "sampling: eta: should be less than or equal to 1 (got 2.0)"


def test_a_search_asks_no_shadows(tmp_path: Path) -> None:
    """They may be what judges, and need not be served where its rewards are."""
    run = searched_with(tmp_path, None, "http://rewards:8000", ["clip"])
    shown = run.rewards.model_copy(update={"judge": "verifier", "shadows": ("jpeg",)})
    run = run.model_copy(update={"rewards": shown})
    assert searched_with(tmp_path, run, None, []).rewards.names == ["clip"]
    assert searched_with(tmp_path, run, None, ["jpeg"]).rewards.names == ["jpeg"]
