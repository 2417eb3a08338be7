"""The network against transformers' own BLIP, an independent implementation; its size is the official one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from reward_services.scorers.blip import ImageRewardNetwork, ImageSizes, TextSizes

IMAGE = ImageSizes(width=128, depth=2, hidden=96, patch=8, side=32)
TEXT = TextSizes(width=48, depth=2, hidden=80, heads=3, positions=40, vocabulary=50, eps=1e-12)
# transformers' names for the modules of the image encoder.
RENAMED = [
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
]


@pytest.fixture(scope="module")
def network() -> ImageRewardNetwork:
    """Random weights, large enough for attention to be far from uniform."""
    network = ImageRewardNetwork(IMAGE, TEXT).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.normal_(0, max(weight[0].numel(), 1) ** -0.5 * 1.5, generator=generator)
    return network


def part(network: ImageRewardNetwork, prefix: str) -> dict[str, Tensor]:
    state = network.state_dict()
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def renamed(key: str) -> str:
    for ours, theirs in RENAMED:
        key = key.replace(ours, theirs)
    return key.replace("norm.", "post_layernorm.") if key.startswith("norm.") else key


def vision_of_transformers(network: ImageRewardNetwork) -> Any:
    model = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=IMAGE.width,
            intermediate_size=IMAGE.hidden,
            num_hidden_layers=IMAGE.depth,
            num_attention_heads=IMAGE.width // 64,
            image_size=IMAGE.side,
            patch_size=IMAGE.patch,
            layer_norm_eps=1e-6,
        )
    )
    weights = part(network, "blip.visual_encoder.")
    model.load_state_dict({renamed(key): value for key, value in weights.items()})
    return model.eval()


def text_of_transformers(network: ImageRewardNetwork) -> Any:
    config = BlipTextConfig(
        vocab_size=TEXT.vocabulary,
        hidden_size=TEXT.width,
        encoder_hidden_size=IMAGE.width,
        intermediate_size=TEXT.hidden,
        num_hidden_layers=TEXT.depth,
        num_attention_heads=TEXT.heads,
        max_position_embeddings=TEXT.positions,
        layer_norm_eps=TEXT.eps,
        is_decoder=True,
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    model.load_state_dict(part(network, "blip.text_encoder."))
    return model.eval()


def test_equal_to_transformers(network: ImageRewardNetwork) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.randint(1, TEXT.vocabulary, (3, 9), generator=generator)
    lengths = torch.tensor([9, 2, 5])
    with torch.no_grad():
        tokens = vision_of_transformers(network)(pixels).last_hidden_state
        hidden = text_of_transformers(network)(
            ids,
            attention_mask=(torch.arange(9) < lengths[:, None]).long(),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:2]),
            is_decoder=False,
        ).last_hidden_state
    torch.testing.assert_close(network.image_tokens(pixels), tokens, atol=1e-4, rtol=1e-4)
    raw = hidden[:, 0]
    for place in (0, 2, 4, 6, 7):
        raw = torch.nn.functional.linear(raw, *part(network, f"mlp.layers.{place}.").values())
    expected = (raw[:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert expected.std() > 0.1
    torch.testing.assert_close(network(tokens, ids, lengths), expected, atol=1e-4, rtol=1e-4)


def test_what_pads_changes_nothing(network: ImageRewardNetwork) -> None:
    tokens = torch.randn(1, 17, IMAGE.width, generator=torch.Generator().manual_seed(2))
    ids, length = torch.tensor([[7, 8, 9, 1, 2, 3]]), torch.tensor([3])
    alone = network(tokens, ids[:, :3], length)
    torch.testing.assert_close(network(tokens, ids, length), alone)
    assert (network(tokens, ids, torch.tensor([4])) - alone).abs() > 1e-3


def test_training_mode_scores_the_same(network: ImageRewardNetwork) -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ids, length = torch.tensor([[7, 8]]), torch.tensor([2])
    assert torch.equal(
        network.train()(network.image_tokens(pixels), ids, length),
        network.eval()(network.image_tokens(pixels), ids, length),
    )


def test_the_official_size() -> None:
    with torch.device("meta"):
        network = ImageRewardNetwork(
            ImageSizes(width=1024, depth=24, hidden=4096, patch=16, side=224),
            TextSizes(768, depth=12, hidden=3072, heads=12, positions=512, vocabulary=30524, eps=1e-12),
        )
    # The official checkpoint has 446,665,953 parameters, projections to 256 that no score uses among them.
    unused = 256 * (1024 + 1) + 256 * (768 + 1)
    assert sum(weight.numel() for weight in network.parameters()) + unused == 446_665_953
    assert network.side == 224
