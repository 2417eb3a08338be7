"""A checkpoint is taken exactly as it is meant, or refused in one line that names the key."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reward_services import ConfigInvalid
from reward_services.scorers.blip import ImageRewardNetwork
from reward_services.scorers.image_reward_checkpoint import load_network

GOLDEN = Path(__file__).parents[1] / "golden" / "imagereward"
WORDS = "blip.text_encoder.embeddings.word_embeddings.weight"
FIRST = "blip.visual_encoder.cls_token"
LAST = "mlp.layers.7.bias"
BLOCK = "blip.visual_encoder.blocks.1.norm1.weight"
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    loaded: State = torch.load(GOLDEN / "ImageReward.pt", weights_only=True)
    return loaded


def loaded(checkpoint: Path, dtype: torch.dtype = torch.float32) -> ImageRewardNetwork:
    return load_network(checkpoint, GOLDEN / "med_config.json", device=torch.device("cpu"), dtype=dtype)


def saved(folder: Path, content: Any) -> Path:
    path = folder / "ImageReward.pt"
    torch.save(content, path)
    return path


def without(state: State, *words: str) -> State:
    return {key: value for key, value in state.items() if not any(word in key for word in words)}


def test_every_weight_arrives(state: State) -> None:
    network = loaded(GOLDEN / "ImageReward.pt")
    arrived = network.state_dict()
    unused = {key for key in state if "vision_proj" in key or "text_proj" in key or "position_ids" in key}
    assert len(unused) == 5
    assert arrived.keys() == state.keys() - unused
    assert all(torch.equal(weight, state[key]) for key, weight in arrived.items())
    assert network.side == 224
    assert not any(weight.requires_grad for weight in network.parameters())


def test_what_no_score_uses_may_be_absent(state: State, tmp_path: Path) -> None:
    bare = without(state, "vision_proj", "text_proj", "position_ids")
    assert loaded(saved(tmp_path, bare)).side == 224


def test_the_head_stays_in_float32() -> None:
    network = loaded(GOLDEN / "ImageReward.pt", torch.bfloat16)
    assert {weight.dtype for weight in network.blip.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in network.mlp.parameters()} == {torch.float32}


def test_the_loaded_network_outlives_its_file(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path, state)
    network = loaded(path)
    path.write_bytes(b"")
    assert torch.equal(network.state_dict()[WORDS], state[WORDS])


def odd(state: State) -> State:
    key = "blip.visual_encoder.pos_embed"
    return {**state, key: state[key][:, :-1]}


REFUSED: list[tuple[str, Callable[[State], Any], str]] = [
    ("a key is missing", lambda state: without(state, LAST), f"lacks {LAST}"),
    ("the first is missing", lambda state: without(state, FIRST), f"lacks {FIRST}"),
    ("an inner block is missing", lambda state: without(state, "blocks.0"), "lacks .*blocks.0.norm1.weight"),
    ("half a block is missing", lambda state: without(state, BLOCK), f"lacks {BLOCK}"),
    ("a text layer is missing", lambda state: without(state, "layer.2."), "lacks .*encoder.layer.2."),
    ("a key is unknown", lambda state: {**state, "mlp.layers.8.bias": torch.ones(1)}, "mlp.layers.8.bias"),
    (
        "keys are prefixed",
        lambda state: {f"module.{key}": value for key, value in state.items()},
        f"lacks {FIRST} .*module.{FIRST}",
    ),
    (
        "a shape is wrong",
        lambda state: {**state, WORDS: state[WORDS][:-1]},
        rf"{WORDS} has shape \[303, 64\]",
    ),
    ("transposed", lambda state: {**state, FIRST: state[FIRST].mT}, rf"{FIRST} has shape \[1, 128, 1\]"),
    ("a scalar", lambda state: {**state, FIRST: torch.tensor(1.0)}, rf"{FIRST} has shape \[\]"),
    ("positions of no square", odd, r"pos_embed has shape \[1, 196, 128\], not \[1, 170, 128\]"),
    ("empty", lambda _: {}, "lacks blip"),
    ("no tensors", lambda state: {"model": state}, "no plain dictionary of weights"),
    ("a list", lambda state: list(state.values()), "no plain dictionary of weights"),
    ("an object", lambda _: {"network": torch.nn.Linear(1, 1)}, "cannot be read as weights"),
]


@pytest.mark.parametrize(
    ("change", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_bad_checkpoint_names_the_key(
    state: State, tmp_path: Path, change: Callable[[State], Any], says: str
) -> None:
    path = saved(tmp_path, change(state))
    with pytest.raises(ConfigInvalid, match=says) as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_official_encoder_without_its_last_block_is_refused(state: State, tmp_path: Path) -> None:
    """Its width says how deep it is. Names and shapes are what counts: one number fills each weight."""

    def widened(value: Tensor) -> Tensor:
        sizes = {128: 1024, 384: 3072, 512: 4096}
        return torch.zeros(1).expand([sizes.get(size, size) for size in value.shape])

    image = {key: widened(value) for key, value in state.items() if "visual_encoder" in key}
    rest = without(state, "visual_encoder")
    path = saved(tmp_path, {**image, **rest})
    with pytest.raises(ConfigInvalid, match=re.escape("lacks blip.visual_encoder.blocks.2.norm1.weight")):
        loaded(path)


def test_torn_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "ImageReward.pt"
    with pytest.raises(ConfigInvalid, match=r"has no ImageReward\.pt"):
        loaded(path)
    whole = (GOLDEN / "ImageReward.pt").read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2], whole[len(whole) // 2 :]):
        path.write_bytes(content)
        with pytest.raises(ConfigInvalid, match="cannot be read as weights"):
            loaded(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": None}, "hidden_size: Input should be a valid integer"),
        ({"hidden_size": 60}, "word_embeddings.weight has shape"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads"),
        ({"num_hidden_layers": 4}, "lacks .*layer.3."),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"max_position_embeddings": 34}, "max_position_embeddings: .*35"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: Input should be greater than 0"),
    ],
)
def test_a_wrong_med_config_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    stated = json.loads((GOLDEN / "med_config.json").read_text(encoding="utf-8"))
    path = tmp_path / "med_config.json"
    path.write_text(json.dumps({**stated, **change}), encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=says):
        load_network(GOLDEN / "ImageReward.pt", path, device=torch.device("cpu"), dtype=torch.float32)


def test_no_med_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot read .*med_config.json: No such file"):
        load_network(
            GOLDEN / "ImageReward.pt",
            tmp_path / "med_config.json",
            device=torch.device("cpu"),
            dtype=torch.half,
        )
