"""Writes the embedded world's CLIP tokenizer: byte-level, so that any text has ids, and one token a word.

The merges are learned here with ties broken by spelling: libraries that break them by hash order give the
same word another id in every process.
"""

import itertools
import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from reward_services.shapes.captions import CATEGORIES, all_scenes

MAX_TOKENS = 16
_END = "</w>"


def words() -> list[str]:
    """Every word of every caption, sorted."""
    return sorted(
        {word for category in CATEGORIES for scene in all_scenes(category) for word in scene.text.split()}
    )


def learn_merges(pieces: list[list[str]]) -> list[tuple[str, str]]:
    """Byte-pair merges until each word, given as its letters, is one token."""
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Save the tokenizer in the transformers layout and return it."""
    alphabet = byte_alphabet()
    merges = learn_merges([[*word[:-1], word[-1] + _END] for word in words()])
    tokens = [*alphabet, *(letter + _END for letter in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    for word in words():
        ids = tokenizer(word).input_ids
        if len(ids) != 3:
            raise RuntimeError(f"{word!r} became {ids}, not one token")
    return tokenizer


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses (GPT-2)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    spare = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
