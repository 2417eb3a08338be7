"""The Open Inference Protocol: the bytes of Triton's clients, the specification's schema, readable errors."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services import ScoringFailed

INFER = "/v2/models/verifier/infer"
# Of `inference_response` in the specification's open_inference_rest.yaml.
OUTPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"enum": ["FP64"]},
        "data": {"type": "array", "items": {"type": "number"}},
    },
}
RESPONSE = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        **{name: {"type": "string"} for name in ("model_name", "model_version", "id")},
        "outputs": {"type": "array", "items": OUTPUT, "minItems": 1},
    },
}
PROMPTS = ["a red circle", "a red square"]


@pytest.fixture
def files(file_of: Callable[..., bytes]) -> list[bytes]:
    return [file_of("a red circle")] * 2


def tensors(files: list[bytes], **more: Any) -> dict[str, Any]:
    """Prompts and files, in JSON."""
    data = [base64.b64encode(file).decode() for file in files]
    prompt = {"name": "prompt", "shape": [len(PROMPTS)], "datatype": "BYTES", "data": PROMPTS}
    image = {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return {"inputs": [prompt, image], **more}


def strings(*elements: bytes) -> bytes:
    """A binary BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(api: Any, header: bytes, *rest: bytes, claims: str | None = None, reward: str = "verifier") -> Any:
    """Sends a body as Triton's clients do: no Content-Type, and a header for the length of the JSON."""
    length = str(len(header)) if claims is None else claims
    headers = {"inference-header-content-length": length}
    return api.post(f"/v2/models/{reward}/infer", content=b"".join([header, *rest]), headers=headers)


def score_of(response: Any) -> list[float]:
    assert response.status_code == 200, response.text
    answer = response.json()
    jsonschema.validate(answer, RESPONSE)
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"]) == ("score", [len(output["data"])])
    return list(output["data"])


def test_health_needs_no_body_and_models_describe_themselves(api: Any) -> None:
    for path in ("health/live", "health/ready", "models/jpeg/ready"):
        assert api.get(f"/v2/{path}").status_code == 200
    model = api.get("/v2/models/jpeg").json()
    assert (model["name"], model["outputs"][0]["datatype"]) == ("jpeg", "FP64")
    assert [tensor["name"] for tensor in model["inputs"]] == ["prompt", "image"]
    assert api.get("/v2/models/jepg/ready").status_code == 404


def test_json_tensors(api: Any, files: list[bytes]) -> None:
    answered = api.post(INFER, json=tensors(files, id="42", outputs=[{"name": "score"}]))
    assert score_of(answered) == [1.0, 0.0]
    version = api.get("/v2/models/verifier").json()["versions"][0]
    assert (answered.json()["id"], answered.json()["model_version"]) == ("42", version)
    assert "id" not in api.post(INFER, json=tensors(files)).json()


def test_tritonclients_json(api: Any, files: list[bytes]) -> None:
    """As tritonclient 2.73 sends `binary_data=False`: no Content-Type, no spaces."""
    images = ",".join(f'"{base64.b64encode(file).decode()}"' for file in files)
    body = (
        '{"inputs":[{"name":"prompt","shape":[2],"datatype":"BYTES","data":["a red circle","a red square"]},'
        f'{{"name":"image","shape":[2],"datatype":"BYTES","data":[{images}]}}],'
        '"outputs":[{"name":"score","parameters":{"binary_data":false}}]}'
    )
    assert score_of(api.post(INFER, content=body.encode())) == [1.0, 0.0]


def test_tritonclients_binary_pixels(api: Any, drawn: Callable[[str], NDArray[np.uint8]]) -> None:
    """As tritonclient 2.73 sends by default, down to the header's fields."""
    prompts = strings(b"a red circle", b"two blue squares")
    pixels = drawn("a red circle").tobytes() * 2
    header = (
        b'{"inputs":[{"name":"prompt","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":%d}},'
        b'{"name":"image","shape":[2,32,32,3],"datatype":"UINT8","parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % (len(prompts), len(pixels))
    )
    assert score_of(binary(api, header, prompts, pixels)) == [1.0, 0.0]


def test_binary_files_beside_json_prompts(api: Any, files: list[bytes]) -> None:
    images = strings(*files)
    header = (
        b'{"inputs":[{"name":"image","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":%d}},'
        b'{"name":"prompt","shape":[2],"datatype":"BYTES","data":["a red circle","a red square"]}]}'
        % len(images)
    )
    assert score_of(binary(api, header, images)) == [1.0, 0.0]


HEADER = (
    b'{"inputs":[{"name":"prompt","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}},'
    b'{"name":"image","shape":[1,1,1,3],"datatype":"UINT8","parameters":{"binary_data_size":3}}]}'
)


@pytest.mark.parametrize(
    ("header", "rest", "claims"),
    [
        (HEADER, b"\1\0\0\0aRG", None),
        (HEADER, b"\1\0\0\0aRGBA", None),
        (HEADER, b"\7\0\0\0aRGB", None),
        (HEADER, b"\1\0\0\0\xffRGB", None),
        (HEADER, b"\1\0\0\0aRGB", "9" * 5000),
        (HEADER, b"\1\0\0\0aRGB", "-1"),
        (HEADER, b"\1\0\0\0aRGB", "12"),
        (HEADER.replace(b"[1,1,1,3]", b"[1,1,1,4]"), b"\1\0\0\0aRGBA", None),
        (HEADER.replace(b"[1,1,1,3]", b"[999999999999,1,1,3]"), b"\1\0\0\0aRGB", None),
        (HEADER.replace(b"[1,1,1,3]", b"[0,1,1,3]"), b"\1\0\0\0aRGB", None),
        (HEADER.replace(b"[1,1,1,3]", b"[3]"), b"\1\0\0\0aRGB", None),
        (HEADER.replace(b'"prompt"', b'"image"'), b"\1\0\0\0aRGB", None),
        (HEADER.replace(b"[1]", b"[2]"), b"\1\0\0\0aRGB", None),
        (HEADER.replace(b"[1]", b"[1,1]"), b"\1\0\0\0aRGB", None),
        (b"", b"", None),
        (b"{", b"", None),
    ],
)
def test_tensors_that_do_not_add_up_are_refused(
    api: Any, header: bytes, rest: bytes, claims: str | None
) -> None:
    """By a reward that would score a picture of one pixel."""
    response = binary(api, header, rest, claims=claims, reward="jpeg")
    assert response.json()["type"] in {"/problems/request-malformed", "/problems/request-invalid"}
    assert response.json()["error"] == response.json()["detail"]


def test_a_pixel_can_be_scored(api: Any) -> None:
    """What the requests above would be, if they added up."""
    (score,) = score_of(binary(api, HEADER, b"\1\0\0\0aRGB", reward="jpeg"))
    assert score < 0


def test_failures_are_errors_that_the_protocol_knows(
    failing_api: Callable[..., Any], api: Any, files: list[bytes]
) -> None:
    """Triton's clients raise the text of `error` wherever the status is not 200."""
    torn = api.post(INFER, json=tensors([files[0], b"\x89PNG\r\n\x1a\ntorn"]))
    assert (torn.status_code, torn.json()["error"][:8]) == (422, "item 1: ")
    sent = tensors(files)
    sent["inputs"][0]["data"] = ["a", "FAIL"]
    failed = failing_api(ScoringFailed("no answer")).post("/v2/models/jpeg/infer", json=sent)
    assert (failed.status_code, failed.json()["error"]) == (500, "item 1: no answer")
    assert api.post("/v2/models/no/infer", json=tensors(files)).json()["error"].startswith("no reward 'no'")


def test_no_other_output_can_be_asked_for(api: Any, files: list[bytes]) -> None:
    assert api.post(INFER, json=tensors(files, outputs=[{"name": "logits"}])).status_code == 422
