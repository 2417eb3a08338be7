"""Trains the embedded world's judge: a tiny LLaVA that answers a rubric's question about a picture.

Its eyes are those of the world's CLIP, its language model starts at random. What it must say is the
verifier's verdict: the highest level where the caption holds, else the share of the caption's parts that do,
times two thirds. Scene and minimally wrong scene come in blocks of pictures of both with captions of both, as
for the CLIP. It must also foretell the words of right captions, which is how it learns to look.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from deploy.shapes.clip import MEAN, STD, distort, wrong
from deploy.shapes.data import pixels, random_scene
from deploy.shapes.tokenizer import byte_alphabet, learn_merges, words
from reward_services.judges.rubric import Rubric, load_rubric
from reward_services.shapes.render import IMAGE_SIZE, render
from reward_services.shapes.verify import verify

RUBRIC = Path(__file__).parent / "judge" / "rubric.yaml"
PAIRS = 16
CONTEXT = 512
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>")
SPACE = "Ġ"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def new_tokenizer(rubric: Rubric) -> PreTrainedTokenizerFast:
    """Byte-level, so that any text has ids; words of captions and of the rubric are one token each."""
    asked = [rubric.instruction, *(aspect.question for aspect in rubric.aspects.values())]
    spoken = {word.strip(".,?") for text in asked for word in text.split()} | set(words())
    merges = learn_merges([[*head, *word] for word in sorted(spoken) for head in ([SPACE], [])])
    alphabet = [*SPECIAL, *byte_alphabet(), *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        extra_special_tokens={"image_token": SPECIAL[-1]},
        model_max_length=CONTEXT,
    )


def new_judge(clip: Path, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA of 0.9 M parameters, sixteen tokens a picture; heads of 64, which vLLM needs on CPUs."""
    eyes = CLIPVisionModel.from_pretrained(clip)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    seen = eyes.config.to_dict()
    seen.pop("_name_or_path", None)  # where it was loaded from says nothing elsewhere
    config = LlavaConfig(
        vision_config=seen,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(SPECIAL[-1]),
        image_seq_length=16,
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    judge = LlavaForConditionalGeneration(config)
    judge.model.vision_tower.load_state_dict(eyes.state_dict())
    return judge


def new_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures and chats to what the judge reads."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=MEAN,
        image_std=STD,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


class Lesson:
    """Chats of one rubric with one aspect as token ids, and the level that each picture deserves."""

    def __init__(self, rubric: Rubric, processor: LlavaProcessor) -> None:
        self._rubric, self._tokenizer, self._template = rubric, processor.tokenizer, processor.chat_template
        self.levels = torch.tensor([self._id(level) for level in rubric.levels])
        self._quote = self._id('"')

    def tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, longest), padded on the right, and the place (N,) of each chat's last token."""
        chats = [self._ids(caption) for caption in captions]
        last = torch.tensor([len(chat) - 1 for chat in chats])
        padding = [self._tokenizer.pad_token_id] * int(last.max() + 1)
        return torch.tensor([(chat + padding)[: len(padding)] for chat in chats]), last

    def words(self, tokens: Tensor) -> Tensor:
        """(N, L) ids to (N, L - 1): those that a caption says next, -100 elsewhere."""
        quotes = (tokens == self._quote).cumsum(1) == 1
        return tokens[:, 1:].masked_fill(~quotes[:, :-1], -100)

    def grade(self, image: NDArray[np.uint8], caption: str) -> int:
        """The index of the level that the verifier's verdict comes to."""
        verdict = verify(image, caption)
        share = 1.0 if verdict.correct else 2 / 3 * sum(verdict.parts.values()) / len(verdict.parts)
        return round((len(self._rubric.levels) - 1) * share)

    def _ids(self, caption: str) -> list[int]:
        (question,) = self._rubric.questions(caption)
        chat = question.messages({"type": "image"})
        text = self._tokenizer.apply_chat_template(
            chat, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        found: list[int] = self._tokenizer(
            text.replace("<image>", "<image>" * 16), add_special_tokens=False
        ).input_ids
        return found

    def _id(self, level: str) -> int:
        (found,) = self._tokenizer(level, add_special_tokens=False).input_ids
        return int(found)


def answers(
    judge: LlavaForConditionalGeneration, lesson: Lesson, images: Tensor, captions: list[str]
) -> Tensor:
    """(N, 3, 32, 32) in [-1, 1] and N captions to the (N, levels) logits of the answer."""
    tokens, last = lesson.tokens(captions)
    hidden = judge.model(input_ids=tokens, pixel_values=images, use_cache=False).last_hidden_state
    logits: Tensor = judge.lm_head(hidden[torch.arange(len(last)), last])
    return logits[:, lesson.levels]


def losses(
    judge: LlavaForConditionalGeneration, lesson: Lesson, images: Tensor, captions: list[str], grades: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the levels of all chats, and of the words of the right captions."""
    tokens, last = lesson.tokens(captions)
    hidden = judge.model(input_ids=tokens, pixel_values=images, use_cache=False).last_hidden_state
    answer = functional.cross_entropy(
        judge.lm_head(hidden[torch.arange(len(last)), last]), lesson.levels[grades]
    )
    right = grades == len(lesson.levels) - 1
    words = lesson.words(tokens[right])
    spoken = words != -100
    return answer, functional.cross_entropy(judge.lm_head(hidden[right][:, :-1][spoken]), words[spoken])


def blocks(
    rng: np.random.Generator, lesson: Lesson, count: int
) -> tuple[NDArray[np.uint8], list[str], Tensor]:
    """For each of `count` scenes and its wrong one, pictures of both with captions of both, and levels."""
    images, captions, grades = [], [], []
    for _ in range(count):
        scene = random_scene(rng)
        other = wrong(scene, rng) if rng.random() < 0.85 else random_scene(rng)
        for shown, said in itertools.product((scene, other), repeat=2):
            images.append(render(shown, rng))
            captions.append(said.text)
            # A rendered scene is right by construction, and verdicts cost as much as an update.
            grades.append(len(lesson.levels) - 1 if shown == said else lesson.grade(images[-1], said.text))
    return np.stack(images), captions, torch.tensor(grades)


def train(
    judge: LlavaForConditionalGeneration, lesson: Lesson, seconds: float, *, learning_rate: float, seed: int
) -> None:
    """Train for a given time; the cosine schedule follows the clock. The eyes know much: they change less."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    eyes = list(judge.model.vision_tower.parameters())
    rest = [weight for name, weight in judge.named_parameters() if "vision_tower" not in name]
    groups = [{"params": eyes, "peak": 0.3 * learning_rate}, {"params": rest, "peak": learning_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    start, iteration = time.time(), 0
    while (elapsed := time.time() - start) < seconds:
        for group in optimizer.param_groups:
            share = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / seconds))
            group["lr"] = group["peak"] * min(1.0, (iteration + 1) / 50) * share
        images, captions, grades = blocks(rng, lesson, PAIRS)
        answer, words = losses(judge, lesson, distort(pixels(images), generator), captions, grades)
        (answer + words).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        if iteration % 50 == 0:
            print(
                f"judge {elapsed:5.0f} s, iteration {iteration}, "
                f"loss of levels {answer.item():.3f}, of words {words.item():.3f}",
                flush=True,
            )


@torch.no_grad()
def measure(
    judge: LlavaForConditionalGeneration, lesson: Lesson, seed: int, count: int = 500
) -> dict[str, float]:
    """Held-out captions: how often the right picture is above the wrong one, by category, and the AUC."""
    rng = np.random.default_rng(seed)
    worth = torch.arange(len(lesson.levels)).float()
    right: dict[str, list[float]] = {}
    wrongs: dict[str, list[float]] = {}
    for _ in range(count):
        scene = random_scene(rng, held_out=True, even=True)
        images = np.stack([render(one, rng) for one in (scene, wrong(scene, rng))])
        logits = answers(judge, lesson, pixels(images), [scene.text] * 2)
        good, bad = (logits.softmax(1) @ worth).tolist()
        right.setdefault(scene.category, []).append(good)
        wrongs.setdefault(scene.category, []).append(bad)
    pairs = {kind: _above(right[kind], wrongs[kind]) for kind in sorted(right)}
    above, below = (np.concatenate(list(side.values())) for side in (right, wrongs))
    everything = {"AUC": float((above[:, None] > below[None]).mean()), "pairs": float((above > below).mean())}
    return {name: round(share, 3) for name, share in {**pairs, **everything}.items()}


def save(judge: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save model, tokenizer and processor in the transformers layout, in half precision."""
    judge.half().save_pretrained(folder)
    # Two names are known for these weights: transformers reads both and writes one, vLLM reads the other.
    file = folder / "model.safetensors"
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): one
        for name, one in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    processor.save_pretrained(folder)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path, help="the CLIP whose vision model it starts from")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the folder, with a new schedule")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rubric = load_rubric(str(RUBRIC))
    processor = new_processor(new_tokenizer(rubric))
    if arguments.resume:
        judge = LlavaForConditionalGeneration.from_pretrained(arguments.folder, dtype=torch.float32)
    else:
        judge = new_judge(arguments.clip, processor.tokenizer)
    lesson = Lesson(rubric, processor)
    train(judge, lesson, arguments.seconds, learning_rate=arguments.learning_rate, seed=arguments.seed)
    judge.eval()
    print(f"judge: right picture above a minimally wrong one {measure(judge, lesson, arguments.seed + 1)}")
    save(judge, processor, arguments.folder)


def _above(right: list[float], wrongs: list[float]) -> float:
    return float(np.mean(np.array(right) > np.array(wrongs)))


if __name__ == "__main__":
    main()
