"""Prompts are encoded once, together, and forgotten in the order in which they were last asked for."""

from collections.abc import Sequence

import torch

from trainer.encoded import AT_A_TIME, KEPT, Encoded
from trainer.families.family import Conditioning


class Encoder:
    """Numbers as prompts, themselves as features."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        self.batches.append(list(texts))
        values = torch.tensor([float(text) for text in texts])
        return Conditioning(values[:, None, None], values[:, None], torch.empty(len(texts), 0))


def asked(encoded: Encoded, prompts: Sequence[int]) -> list[float]:
    features = encoded([str(prompt) for prompt in prompts])
    assert features.hidden.flatten().tolist() == features.pooled.flatten().tolist()
    return features.pooled.flatten().tolist()


def test_rows_are_in_the_order_of_the_prompts_and_each_is_encoded_once() -> None:
    encoder = Encoder()
    encoded = Encoded(encoder)
    assert asked(encoded, [3, 1, 3]) == [3, 1, 3]
    assert asked(encoded, [2, 1, 4, 3]) == [2, 1, 4, 3]
    assert encoder.batches == [["3", "1"], ["2", "4"]]


def test_many_are_encoded_some_at_a_time() -> None:
    encoder = Encoder()
    assert asked(Encoded(encoder), range(AT_A_TIME + 3)) == list(range(AT_A_TIME + 3))
    assert [len(batch) for batch in encoder.batches] == [AT_A_TIME, 3]


def test_what_was_asked_for_longest_ago_is_forgotten_first() -> None:
    encoder = Encoder()
    encoded = Encoded(encoder)
    asked(encoded, range(KEPT))
    asked(encoded, [0])
    asked(encoded, [KEPT])  # one too many: 1 goes, since 0 was asked for after it
    encoder.batches.clear()
    asked(encoded, [0, KEPT, 2])
    assert encoder.batches == []
    asked(encoded, [1])
    assert encoder.batches == [["1"]]


def test_more_prompts_than_are_kept_all_come_back() -> None:
    assert asked(Encoded(Encoder()), range(KEPT + 5)) == list(range(KEPT + 5))
