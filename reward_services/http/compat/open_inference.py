"""The Open Inference Protocol, version 2, of KServe and Triton: every reward is a model with two inputs.

`prompt` is BYTES of shape [N]. `image` is BYTES of shape [N], a PNG, JPEG or WebP file each, in base64 where
the tensor is in the JSON; or, with the extension for binary tensors that Triton's clients use, UINT8 of shape
[N, H, W, 3]. The output `score` is FP64 of shape [N]. The protocol has no place for an item that failed, so
the request does, with {"error": ...}, which every problem on these paths has besides. Its clients raise that
and send nothing again.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError
from starlette.requests import Request

from reward_services.errors import RequestInvalid, RequestMalformed
from reward_services.http.bodies import explained
from reward_services.http.compat import OPEN_INFERENCE
from reward_services.http.compat.interpreter import Image, Interpreter, Route, picture, values_of
from reward_services.http.json_values import check_values
from reward_services.images import RAW_MEDIA_TYPE, Attachment
from reward_services.rewards import check_ready
from reward_services.schema import Limits, RewardInfo

INFER = OPEN_INFERENCE + "models/{reward_id}/infer"

_HEADER = "inference-header-content-length"  # how many bytes of a body with binary tensors are JSON
_WITHIN_S = 55.0  # Triton's clients wait 60 s


Element = str | bytes | Attachment


class TensorParameters(BaseModel):
    """`binary_data_size` is how many bytes of what follows the JSON are the tensor's."""

    binary_data_size: NonNegativeInt | None = None


class InputTensor(BaseModel):
    """A tensor; `data` where it is not binary."""

    name: Literal["prompt", "image"]
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[list[NonNegativeInt], Field(min_length=1, max_length=4)]
    parameters: TensorParameters = TensorParameters()
    data: list[str] | None = None


class RequestedOutput(BaseModel):
    """What is asked for, of what there is."""

    name: Literal["score"]


class InferRequest(BaseModel):
    """Prompts and images, in either order."""

    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=2, max_length=2)]
    outputs: list[RequestedOutput] = []


class TensorInfo(BaseModel):
    """A tensor's name, type and shape; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """A reward, as a model of one version, its revision."""

    name: str
    versions: list[str]
    platform: str = "diffusion-sharpening"
    inputs: list[TensorInfo] = [
        TensorInfo(name="prompt", datatype="BYTES", shape=[-1]),
        TensorInfo(name="image", datatype="BYTES", shape=[-1]),
    ]
    outputs: list[TensorInfo] = [TensorInfo(name="score", datatype="FP64", shape=[-1])]


class OutputTensor(TensorInfo):
    """The scores."""

    data: list[float]


class InferResponse(BaseModel):
    """The scores of a request, and the revision that computed them."""

    model_name: str
    model_version: str
    id: str | None = Field(default=None, exclude_if=lambda value: value is None)
    outputs: list[OutputTensor]


def routes(interpreter: Interpreter) -> list[Route]:
    """Server and model health, model metadata and inference."""

    async def live() -> dict[str, bool]:
        """Whether this process answers at all."""
        return {"live": True}

    async def ready() -> dict[str, bool]:
        """Whether every reward answers."""
        check_ready(await interpreter.served())
        return {"ready": True}

    async def model(reward_id: str) -> ModelInfo:
        """One reward."""
        return _model(await interpreter.reward(reward_id))

    async def model_ready(reward_id: str) -> ModelInfo:
        """Whether one reward answers."""
        info = await interpreter.reward(reward_id)
        check_ready([info])
        return _model(info)

    async def infer(reward_id: str, request: Request) -> InferResponse:
        """Score image[i] against prompt[i]; all of them or none."""
        asked, binary = _parsed(await request.body(), request.headers.get(_HEADER), interpreter.limits)
        prompts, images = _inputs(asked, binary)
        answer = await interpreter.scores(request, [reward_id], prompts, images, _WITHIN_S)
        values = values_of(answer, reward_id)
        score = OutputTensor(name="score", datatype="FP64", shape=[len(values)], data=values)
        version = answer.model_revisions[reward_id]
        return InferResponse(model_name=reward_id, model_version=version, id=asked.id, outputs=[score])

    return [
        Route("GET", OPEN_INFERENCE + "health/live", live),
        Route("GET", OPEN_INFERENCE + "health/ready", ready),
        Route("GET", OPEN_INFERENCE + "models/{reward_id}", model),
        Route("GET", OPEN_INFERENCE + "models/{reward_id}/ready", model_ready),
        Route("POST", INFER, infer),
    ]


def _model(info: RewardInfo) -> ModelInfo:
    return ModelInfo(name=info.id, versions=[info.revision])


def _parsed(body: bytes, json_bytes: str | None, limits: Limits) -> tuple[InferRequest, bytes]:
    """The JSON of a body, and the bytes after it."""
    if json_bytes is not None and not re.fullmatch("[0-9]{1,18}", json_bytes):
        raise RequestMalformed(f"{_HEADER} is the number of bytes that are JSON")
    ends = len(body) if json_bytes is None else int(json_bytes)
    check_values(body[:ends], limits)
    try:
        return InferRequest.model_validate_json(body[:ends]), body[ends:]
    except ValidationError as error:
        raise explained(error) from error


def _inputs(asked: InferRequest, binary: bytes) -> tuple[list[str], list[Image]]:
    contents: dict[str, list[Element]] = {}
    for tensor in asked.inputs:
        size = (tensor.parameters.binary_data_size or 0) if tensor.data is None else 0
        contents[tensor.name] = _elements(tensor, binary[:size])
        binary = binary[size:]
    if binary or set(contents) != {"prompt", "image"}:
        raise RequestInvalid("give the inputs prompt and image, and the bytes of theirs that are binary")
    prompts = [_text(element) for element in contents["prompt"]]
    images = [
        element if isinstance(element, Attachment) else picture(element) for element in contents["image"]
    ]
    return prompts, images


def _text(element: Element) -> str:
    try:
        return element.decode() if isinstance(element, bytes) else str(element)
    except UnicodeDecodeError as error:
        raise RequestInvalid("prompt: the text is not UTF-8") from error


def _elements(tensor: InputTensor, binary: bytes) -> list[Element]:
    if tensor.datatype == "UINT8":
        return [*_arrays(tensor, binary)]
    if len(tensor.shape) != 1:
        raise RequestInvalid(f"{tensor.name}: BYTES have the shape [N]")
    count = tensor.shape[0]
    found = tensor.data if tensor.data is not None else _strings(binary, count)
    if len(found) != count:
        raise RequestInvalid(f"{tensor.name}: {len(found)} elements, but the shape [{count}]")
    return [*found]


def _strings(binary: bytes, count: int) -> list[bytes]:
    """Elements of a binary BYTES tensor: the length of each in four bytes, little-endian, then itself."""
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(binary) and len(found) < count:
        (length,) = struct.unpack_from("<I", binary, at)
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(binary):
        raise RequestInvalid("a BYTES tensor does not add up; each element has its length before it")
    return found


def _arrays(tensor: InputTensor, binary: bytes) -> list[Attachment]:
    if tensor.name != "image" or len(tensor.shape) != 4 or tensor.data is not None:
        raise RequestInvalid("UINT8 are images of the shape [N, H, W, 3], and are sent as binary data")
    count, height, width, channels = tensor.shape
    size = height * width * channels
    if channels != 3 or size == 0 or count * size != len(binary):
        raise RequestInvalid(f"{len(binary)} bytes are no pixels of the shape {tensor.shape}")
    return [
        Attachment(RAW_MEDIA_TYPE, binary[n * size : (n + 1) * size], (height, width, channels))
        for n in range(count)
    ]
