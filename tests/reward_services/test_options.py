"""Options: each class names what its scorer takes, and every folder option is one of its fields."""

import pytest
from pydantic import ValidationError

from reward_services.options import (
    AestheticOptions,
    ClipOptions,
    Hpsv2Options,
    JpegOptions,
    PickScoreOptions,
    ScorerOptions,
    VerifierOptions,
)

EVERY = [AestheticOptions, ClipOptions, Hpsv2Options, JpegOptions, PickScoreOptions, VerifierOptions]


@pytest.mark.parametrize("options", EVERY)
def test_options_are_closed_and_name_their_folders(options: type[ScorerOptions]) -> None:
    assert set(options.folders) <= set(options.model_fields)
    required = {name: "x" for name, field in options.model_fields.items() if field.is_required()}
    options.model_validate(required)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        options.model_validate({**required, "colour": "red"})
