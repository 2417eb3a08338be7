"""What a model's settings take, and what they leave to the model."""

import pytest
from pydantic import ValidationError

from trainer.config import LoraConfig, ModelConfig


def test_what_is_not_said_is_left_to_the_model() -> None:
    config = ModelConfig(path="somewhere")
    assert config.lora is not None
    assert config.lora.target_modules is None
    assert config.image_size is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"decoded_at_a_time": 0},
        {"dtype": "int8"},
        {"lora": {"target_modules": []}},
        {"lora": {"rank": 0}},
        {"unet": "mine"},
    ],
)
def test_what_no_model_has_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({"path": "somewhere", **wrong})


def test_layers_may_be_named() -> None:
    assert LoraConfig(target_modules=("to_q",)).target_modules == ("to_q",)
