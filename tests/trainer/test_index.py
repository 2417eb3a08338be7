"""The kind of a model is read from its index, and what cannot be trained is refused in a line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from trainer.config import ModelConfig
from trainer.families.family import ModelError
from trainer.families.index import check_model
from trainer.families.weightless import load_weightless
from trainer.policy import Policy


@pytest.fixture(scope="module")
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def load(folder: Path | str) -> Policy:
    return Policy.load(ModelConfig(path=str(folder)))


def test_each_kind_is_recognised(families: dict[str, Path]) -> None:
    kinds = {name: check_model(ModelConfig(path=str(folder))).__name__ for name, folder in families.items()}
    assert kinds == {
        **dict.fromkeys(("sd1", "sd2"), "StableDiffusion"),
        "sdxl": "StableDiffusionXL",
        **dict.fromkeys(("sd3", "sd3-without-t5", "sd35"), "StableDiffusion3"),
        **dict.fromkeys(("flux-dev", "flux-schnell"), "Flux"),
    }


@pytest.mark.parametrize(("name", "t5"), [("sd3", True), ("sd3", False), ("sd3-without-t5", True)])
def test_t5_is_there_where_it_is_saved_and_wanted(families: dict[str, Path], name: str, t5: bool) -> None:
    config = ModelConfig(path=str(families[name]), image_size=16, t5=t5)
    family, policy = load_weightless(check_model(config), config), Policy.load(config)
    for pipeline in (family.pipeline, policy._pipeline):
        parts = [getattr(pipeline, part) is not None for part in ("text_encoder_3", "tokenizer_3")]
        assert parts == [name == "sd3" and t5] * 2
    read_by_t5 = policy.encode(["a red circle"]).hidden[:, -256:]
    assert bool(read_by_t5.any()) == all(parts)


@pytest.mark.parametrize("name", ["sdxl", "flux-dev"])
def test_where_t5_cannot_be_left_out_the_setting_is_refused(families: dict[str, Path], name: str) -> None:
    config = ModelConfig(path=str(families[name]), image_size=16, t5=False)
    with pytest.raises(ModelError, match="which has no T5 that it can do without; leave"):
        check_model(config)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("version https://git-lfs.github.com/spec/v1\n", "utf-8")


def a_list(folder: Path) -> None:
    (folder / "model_index.json").write_text('["_class_name"]', "utf-8")


def no_class(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}", "utf-8")


def another_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "AnimateDiffPipeline"}), "utf-8"
    )


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def other_prediction(folder: Path) -> None:
    DDIMScheduler(prediction_type="sample").save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_folder,
            "does not exist; give a folder that diffusers' save_pretrained wrote or the id of a model",
        ),
        (
            no_index,
            "has no model_index.json; model.path must be a folder that diffusers' save_pretrained wrote",
        ),
        (
            no_json,
            r"cannot load model.path .*; give a folder that .* \(It looks like the config file at "
            r"'.*model_index.json' is not a valid JSON file",
        ),
        (a_list, "the model_index.json of .* names no pipeline class as _class_name; fetch the model again"),
        (
            no_class,
            "the model_index.json of .* names no pipeline class as _class_name; fetch the model again",
        ),
        (
            another_pipeline,
            "holds a AnimateDiffPipeline; give as model.path one of StableDiffusionPipeline, "
            "StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline",
        ),
        (no_unet, r"cannot load model.path .*\(Error no file named config.json"),
        (other_prediction, "predicts 'sample'; supported are epsilon, v_prediction"),
    ],
)
def test_what_cannot_be_trained_says_so_in_a_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message) as error:
        load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("path", ["./nope", "../nope", "runs/a/nope"])
def test_a_path_is_not_taken_for_an_id_of_the_hub(path: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(path)


@pytest.fixture
def hub(families: dict[str, Path], tmp_path: Path) -> Path:
    """What the hub's client keeps of two models: a FLUX, and the index of a video model."""
    for name in ("flux", "video"):
        model = tmp_path / f"models--somebody--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40, "utf-8")
        shutil.copytree(families["flux-dev"], model / "snapshots" / ("0" * 40))
    another_pipeline(model / "snapshots" / ("0" * 40))
    return tmp_path


def test_the_index_of_an_id_on_the_hub_is_looked_at_first(hub: Path) -> None:
    code = (
        "import sys\nfrom trainer.config import ModelConfig\nfrom trainer.families.family import ModelError\n"
        "from trainer.families.index import check_model\nfrom trainer.policy import Policy\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        print(check_model(ModelConfig(path=name)).__name__)\n"
        "    except ModelError as error:\n        print(error)\n"
        "print(Policy.load(ModelConfig(path=sys.argv[1], image_size=16)).image_size)"
    )
    names = ("somebody/flux", "somebody/video", "somebody/else")
    known, unsupported, absent, size = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert known == "Flux"
    assert unsupported.startswith(
        "somebody/video holds a AnimateDiffPipeline; give as model.path one of Stable"
    )
    assert absent.startswith("cannot load model.path 'somebody/else'; give a folder that diffusers'")
    assert size == "(16, 16)"
