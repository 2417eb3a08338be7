"""Options: each class names what its scorer takes, and every folder option is one of its fields."""

import pytest
from pydantic import ValidationError

from reward_services.options import (
    AestheticOptions,
    ClipOptions,
    CompositionalOptions,
    CustomOptions,
    Hpsv2Options,
    ImageRewardOptions,
    JpegOptions,
    MllmOptions,
    OpenaiJudgeOptions,
    PickScoreOptions,
    ScorerOptions,
    VerifierOptions,
)

EVERY = [
    AestheticOptions,
    ClipOptions,
    CompositionalOptions,
    CustomOptions,
    Hpsv2Options,
    ImageRewardOptions,
    JpegOptions,
    MllmOptions,
    OpenaiJudgeOptions,
    PickScoreOptions,
    VerifierOptions,
]


@pytest.mark.parametrize("options", EVERY)
def test_options_are_closed_and_name_their_folders(options: type[ScorerOptions]) -> None:
    assert set(options.folders) <= set(options.model_fields)
    required = {
        name: {"one": "x"} if name == "models" else "x"
        for name, field in options.model_fields.items()
        if field.is_required()
    }
    options.model_validate(required)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        options.model_validate({**required, "colour": "red"})


def test_folders_are_found_in_single_options_and_in_mappings() -> None:
    assert ClipOptions(model="a").named_folders() == ["a"]
    assert CompositionalOptions(models={"x": "a", "y": "b"}).named_folders() == ["a", "b"]
    assert JpegOptions().named_folders() == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": {}}, "at least 1 item"),
        ({"weights": {"x": 1}}, "weights must name each of the models: x, y"),
        ({"weights": {"x": 1, "y": 1, "z": 1}}, "weights must name each of the models: x, y"),
        ({"weights": {"x": 1, "y": 0}}, "greater than 0"),
        ({"weights": {"x": 1, "y": float("inf")}}, "finite number"),
        ({"revisions": {"z": "main"}}, "revisions may name the models only: x, y"),
    ],
)
def test_weights_and_revisions_are_those_of_the_models(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CompositionalOptions.model_validate({"models": {"x": "a", "y": "b"}, **options})
