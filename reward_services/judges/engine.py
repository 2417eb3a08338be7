"""A vision-language model in vLLM's engine, in an environment of its own; here alone vLLM is known.

The engine is a child process that batches continuously. Its answer is one token, which structured output
holds to the levels, and the log-probabilities of exactly those tokens come with it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np
import vllm
from numpy.typing import NDArray
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.platforms.interface import Platform
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from reward_services.diagnosis import first_line
from reward_services.errors import ConfigInvalid, PromptInvalid, ReplicaFailed, ReplicaLost
from reward_services.images import from_array
from reward_services.judges.rubric import Question
from reward_services.scorers.weights import digest, local_folder, matching

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")

_PULSE = SamplingParams(max_tokens=1, temperature=0.0)
_ANSWERED = ChatParams(chat_template_kwargs={"add_generation_prompt": True})


class EngineModel:
    """A model that vLLM serves. No code of the model's own is run, and weights are safetensors."""

    def __init__(self, engine: AsyncLLM, revision: str) -> None:
        self.revision = revision
        self._engine = engine
        self._tokenizer: Any = engine.get_tokenizer()
        self._reserved = sorted(word for word in _control_tokens(self._tokenizer) if word.strip())
        self._numbers = itertools.count()
        self._answered = False

    @classmethod
    async def start(
        cls, model: str, *, revision: str | None, engine: Mapping[str, Any], **settings: Any
    ) -> Self:
        """Start an engine: seconds for a small model, minutes for a large one.

        Args:
            model: a folder in the transformers layout, or a hub id.
            revision: commit, tag or branch of a hub model.
            engine: further arguments of vLLM's engine.
            settings: the others, of the same.

        Raises:
            ConfigInvalid: there is no such model, vLLM refuses it or an argument, or sees no GPU.
        """
        check_sees_gpu(current_platform)
        folder = await asyncio.to_thread(local_folder, model, revision, FILES)
        try:
            arguments = AsyncEngineArgs(
                model=str(folder),
                load_format="safetensors",
                limit_mm_per_prompt={"image": 1, "video": 0},
                disable_log_stats=True,
                **settings,
                **engine,
            )
            started = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        except (TypeError, ValueError) as error:
            raise ConfigInvalid(
                f"vLLM refuses {model}: {first_line(str(error))}; correct `options`"
            ) from error
        conventions = f"vllm-{vllm.__version__}/{settings}/{dict(engine)}"
        return cls(started, await asyncio.to_thread(digest, matching(folder, FILES), conventions))

    async def probabilities(
        self, image: NDArray[np.uint8], question: Question, *, expires: float
    ) -> dict[str, float]:
        """As `Model.probabilities`; a question that its asker gives up is taken from the engine's queue.

        Raises:
            ConfigInvalid: a level is more than one token of this model's.
            PromptInvalid: the model cannot take the prompt, as when it is too long.
            ReplicaLost: the engine is dead.
            ReplicaFailed: the engine failed with this question.
        """
        tokens = {level: self._token(level) for level in question.levels}
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(tokens.values()),
            structured_outputs=StructuredOutputsParams(choice=list(tokens)),
        )
        chat = question.messages({"type": "image_pil", "image_pil": from_array(image)}, self._reserved)
        found = await self._generated(chat, sampling)
        return {level: math.exp(found[token].logprob) for level, token in tokens.items() if token in found}

    async def check(self) -> None:
        """Whether the engine lives; one that has answered nothing since the last check must say a word.

        Raises:
            ReplicaLost: it is dead.
        """
        try:
            await self._engine.check_health()
        except EngineDeadError as error:
            raise _lost() from error
        if not self._answered:
            await self._generated([{"role": "user", "content": "?"}], _PULSE)
        self._answered = False

    async def close(self) -> None:
        """End the engine's processes; what is under way fails as lost."""
        await asyncio.to_thread(self._engine.shutdown)

    async def _generated(self, chat: list[dict[str, Any]], sampling: SamplingParams) -> Mapping[int, Any]:
        limits = TokenizeParams(
            max_total_tokens=self._engine.model_config.max_model_len,
            max_output_tokens=1,
            add_special_tokens=False,  # the chat template has them
        )
        name, answer = f"question-{next(self._numbers)}", None
        try:
            _, (prompt,) = await self._engine.renderer.render_chat_async([chat], _ANSWERED, limits)
            async for given in self._engine.generate(prompt, sampling, name):
                answer = given
        except EngineDeadError as error:
            raise _lost() from error
        except (EngineGenerateError, RuntimeError) as error:
            raise ReplicaFailed(f"vLLM failed: {first_line(str(error.__cause__ or error))}") from error
        except (VLLMClientError, ValueError, TypeError) as error:
            raise PromptInvalid(f"the model cannot take the prompt: {first_line(str(error))}") from error
        self._answered = True
        logprobs = answer.outputs[0].logprobs if answer and answer.outputs else None
        return logprobs[0] if logprobs else {}

    def _token(self, level: str) -> int:
        """The level's token after a line's end: alone, some tokenizers would join a space to it."""
        before = self._tokenizer.encode("\n", add_special_tokens=False)
        tokens: list[int] = self._tokenizer.encode(f"\n{level}", add_special_tokens=False)
        if len(tokens) != len(before) + 1:
            raise ConfigInvalid(
                f"the rubric's level {level!r} is not one token of this model's; choose digits"
            )
        return tokens[-1]


def check_sees_gpu(platform: Platform) -> None:
    """Raises `ConfigInvalid` where vLLM computes on GPUs and sees none: its own error does not say why."""
    on_gpu = platform.is_cuda_alike() or platform.is_unspecified()
    if on_gpu and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        raise ConfigInvalid(
            "the vLLM here computes on GPUs and the reward reserves none: set num_gpus to what "
            "options.tensor_parallel_size is, or install vLLM for CPUs"
        )


def _control_tokens(tokenizer: Any) -> Collection[str]:
    return {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}


def _lost() -> ReplicaLost:
    return ReplicaLost("the judge's engine died; the replica is being replaced")
