"""Settings of the data: no section is needed by itself; the method says which (test_train)."""

import pytest
from pydantic import ValidationError

from trainer.config import DataConfig, PromptsConfig


def test_what_is_not_named_is_not_there() -> None:
    assert (PromptsConfig().train, PromptsConfig().held_out) == (None, None)


def test_given_pictures_have_a_source() -> None:
    with pytest.raises(ValidationError, match="source"):
        DataConfig.model_validate({})
