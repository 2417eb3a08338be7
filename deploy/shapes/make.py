"""Makes the embedded default again from its seeds: `make shapes`, two hours on two cores.

    autoencoder ─▶ base model, right captions ─▶ base model, web captions ─┐
        └─▶ preview decoder                                                │
    CLIP on clean renders ─┬───────────────────────────────────────────────┴─▶ CLIP tuned on its samples
                           └─▶ judge

Stages end by the clock, in seconds of two idle cores, so a rerun gives models of the same kind, not the same
bits.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

STAGES = (
    "vae {work}/vae --seconds 170 --seed 0",
    "vae {work}/base/vae --resume {work}/vae --seconds 200 --seed 1",
    "base {work}/base --seconds 960 --seed 0",
    "base {work}/base --resume --clean --seconds 900 --learning-rate 1.4e-3 --seed 10 --pictures 64000",
    "base {work}/base --resume --clean --seconds 2400 --learning-rate 1.2e-3 --seed 30 --pictures 80000",
    "base {work}/base --resume --seconds 480 --learning-rate 1.5e-4 --seed 41 --pictures 24000",
    "preview_decoder {work}/base/vae {work}/preview-decoder --seconds 600 --seed 0",
    "clip {work}/clip --seconds 480 --seed 0",
    "judge {work}/clip {work}/judge --seconds 520 --seed 0",
    "judge {work}/clip {work}/judge --resume --seconds 250 --seed 10",
    "preference {work}/base {work}/clip {work}/preference-clip --captions 480 --seconds 130 --seed 0",
    "prompts {work}/prompts --seed 0",
    "pictures {work}/pictures.parquet --seed 0",
)


def halve(source: Path, target: Path) -> None:
    """Save the base model as it is shipped: UNet and autoencoder in half precision.

    The small text encoders stay in float32, because transformers loads weights in the precision they have.
    """
    pipeline = StableDiffusionXLPipeline.from_pretrained(source, dtype=torch.float16, add_watermarker=False)
    pipeline.text_encoder.float()
    pipeline.text_encoder_2.float()
    pipeline.save_pretrained(target)
    for path in (target / "model_index.json", *target.glob("*/config.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None):  # where it was loaded from says nothing elsewhere
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run every stage, then put the result where it is shipped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/shapes-world"), help="what is unfinished")
    parser.add_argument("--folder", type=Path, default=Path("deploy/shapes"), help="where the result goes")
    arguments = parser.parse_args()
    for stage in STAGES:
        module, *options = stage.format(work=arguments.work).split()
        print(f"== {module} {' '.join(options)}", flush=True)
        subprocess.run([sys.executable, "-m", f"deploy.shapes.{module}", *options], check=True)
    halve(arguments.work / "base", arguments.folder / "base")
    for name in ("preview-decoder", "clip", "judge", "preference-clip", "prompts"):
        shutil.copytree(arguments.work / name, arguments.folder / name, dirs_exist_ok=True)
    shutil.copy(arguments.work / "pictures.parquet", arguments.folder)


if __name__ == "__main__":
    main()
