"""What a run does with its rewards, without the run: `python -m tests.scoring_run SETTINGS ADDRESS`.

It writes the scores of a picture as JSON, and again for each line that it reads; at `fail` it crashes.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np

from trainer.cluster import scoring_on_ray
from trainer.config import load_config

if __name__ == "__main__":
    config = load_config(Path(sys.argv[1]))
    rewards = config.rewards.names
    with scoring_on_ray(config, sys.argv[2]) as scoring:
        for number, line in enumerate(chain(["first"], sys.stdin)):
            if line == "fail\n":
                raise RuntimeError("failed")
            picture = np.random.default_rng(number).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
            scores = scoring.submit(picture, ["a red circle"], rewards)()
            values = {name: of_reward[0].value for name, of_reward in scores.items()}
            sys.stdout.write(f"{json.dumps(values)}\n")
            sys.stdout.flush()
