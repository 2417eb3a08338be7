"""Make deploy/page.png, the README's picture of the page: the embedded rewards' own scores, in Chromium.

rewards serve deploy/rewards.yaml                       # elsewhere
rewards bench http://127.0.0.1:8000 --size 32           # elsewhere: something for the last minute to show
python -m deploy.page http://127.0.0.1:8000 deploy/page.png
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from reward_services.shapes.captions import parse
from reward_services.shapes.render import render

PROMPT = "a red circle left of a blue square"
DRAWN = (PROMPT, "a blue circle left of a red square", "a red circle above a blue square")
COLOURS = 256  # so that the file stays small


def main(url: str, picture: Path) -> None:
    """Score renders of right and wrong captions, and a torn file, and take a picture of the page."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        files = [Path(folder) / f"branch-{number}.png" for number in range(len(DRAWN) + 1)]
        for file, caption in zip(files, DRAWN, strict=False):
            Image.fromarray(render(parse(caption), rng)).save(file)
        files[-1].write_bytes(files[0].read_bytes()[:100])
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.get_by_role("checkbox").first.wait_for()
        page.get_by_label("Images", exact=True).set_input_files(files)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Score").click()
        page.locator("#scores data").first.wait_for()
        seen = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        seen.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
