"""What the tests of the reward services share: golden data, a tiny CLIP, pictures, rewards here."""

import base64
import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from reward_services.scorers.scorer import Scorer
from tests.rewards_here import RewardsHere

Images = list[NDArray[np.uint8]]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden CLIP data."""
    return Path(__file__).parent / "golden" / "clip"


@pytest.fixture(scope="session")
def tiny_clip(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel of 32 pixels, with the golden tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("tiny") / "clip"
    shutil.copytree(golden / "model", folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config={**width, **text},
        vision_config={**width, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def draw() -> Callable[..., Images]:
    """Makes `count` different noisy pictures of (size, size, 3)."""

    def pictures(count: int, size: int = 32, seed: int = 0) -> Images:
        noise = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return list(noise)

    return pictures


@contextmanager
def _served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def served() -> Callable[[Any], AbstractContextManager[str]]:
    """Serves an application over real HTTP, by its URL, within a context."""
    return _served


@pytest.fixture(scope="session")
def json_item() -> Callable[..., dict[str, Any]]:
    """Makes an item of a JSON request: a picture as PNG in base64, with its prompt."""

    def item(picture: Any, prompt: str = "a red circle", **more: Any) -> dict[str, Any]:
        buffer = io.BytesIO()
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        return {"prompt": prompt, "image": {"media_type": "image/png", "data": data}, **more}

    return item


@pytest.fixture(scope="session")
def rewards_here() -> Callable[[Mapping[str, Scorer[Any, Any]]], RewardsHere]:
    """Makes `Rewards` of scorers in this process."""
    return RewardsHere
