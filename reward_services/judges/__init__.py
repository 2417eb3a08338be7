"""Rewards that are asked for: a vision-language model answers a rubric's questions about a picture."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from reward_services.judges.judge import Judge
from reward_services.judges.rubric import load_rubric

# A judge's model is imported when one is started: vLLM is installed in an environment of its own.


async def _mllm(*, rubric: str, **options: Any) -> Judge:
    asked = load_rubric(rubric)
    from reward_services.judges.engine import EngineModel  # noqa: PLC0415

    return Judge(await EngineModel.start(**options), asked)


async def _openai_judge(*, rubric: str, **options: Any) -> Judge:
    from reward_services.judges.endpoint import EndpointModel  # noqa: PLC0415

    return Judge(EndpointModel(**options), load_rubric(rubric))


JUDGES: Mapping[str, Callable[..., Awaitable[Judge]]] = {"mllm": _mllm, "openai_judge": _openai_judge}
"""Name to a function that starts the judge from the options of its configuration."""
