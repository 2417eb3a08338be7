"""A reward server as peers run it, for comparison only: Flask, gunicorn, pickles of JPEG files, no batching.

gunicorn --workers 1 --bind 127.0.0.1:PORT "tests.peer_server:create('FOLDER')"
"""

import io
import pickle

import numpy as np
import torch
from flask import Flask, Response, request
from PIL import Image

from reward_services.scorers.clip import ClipScorer


def create(model: str) -> Flask:
    """The server of one CLIP: {"images": [JPEG], "prompts": [str]} to {"scores": [float]}, both pickled."""
    torch.set_num_threads(1)
    scorer = ClipScorer(model, device="cpu")
    app = Flask(__name__)

    @app.post("/")
    def score() -> Response:
        asked = pickle.loads(request.get_data())
        images = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in asked["images"]]
        scores = [score.value for score in scorer.score(images, asked["prompts"])]
        return Response(pickle.dumps({"scores": scores}))

    return app
