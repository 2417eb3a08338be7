"""Stable Diffusion 3: two CLIPs beside T5, and levels that may depend on the size of the picture."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from trainer.families.sd3 import StableDiffusion3

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(families: dict[str, Path]) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(families["sd3"])


def test_a_prompt_is_encoded_as_the_pipeline_does(pipeline: StableDiffusion3Pipeline) -> None:
    expected = pipeline.encode_prompt("a red circle", None, None)
    family = StableDiffusion3(pipeline)
    text, empty = family.encode(["a red circle"], CPU), family.encode_empty(CPU)
    for found, wanted in zip((text.hidden, empty.hidden, text.pooled, empty.pooled), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.allclose(text.hidden[:, -256:-250], empty.hidden[:, -256:-250])  # T5 reads the prompt


def test_its_t5_may_be_left_out(pipeline: StableDiffusion3Pipeline) -> None:
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    text = StableDiffusion3(pipeline).encode(["a red circle"], CPU)
    assert text.hidden[:, -256:].abs().max() == 0


def test_levels_follow_the_size_where_the_scheduler_says_so(pipeline: StableDiffusion3Pipeline) -> None:
    fixed = StableDiffusion3(pipeline).schedule(4).levels_T.noise
    assert torch.equal(fixed, StableDiffusion3(pipeline, image_size=8).schedule(4).levels_T.noise)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=4)
    small, large = (StableDiffusion3(pipeline, image_size=size).schedule(4) for size in (8, 16))
    assert (small.levels_T.noise[1:] < large.levels_T.noise[1:]).all()
