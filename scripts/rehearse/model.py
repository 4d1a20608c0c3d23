"""What the rehearsal begins with: SDXL-Turbo's folder with random weights, and photographs of several shapes."""

from dataclasses import replace
from pathlib import Path

from scripts.bench.photographs import photograph
from scripts.bench.random_backbones import REDUCED, SDXL
from scripts.bench.turbo_folder import write_turbo_folder
from scripts.clip_vocabulary.tokenizer import clip_tokenizer

SIZES = {"full": SDXL, "tenth": replace(REDUCED, depths=(1, 1, 2), text_depths=(2, 2))}
"""SDXL-Turbo's own, and a tenth of its width with fewer layers in its transformers: all else is alike."""

SHAPES = ((1024, 768), (768, 1024), (1200, 640), (640, 640))
CAPTIONS = (
    "a portrait of an astronaut before a flag",
    "a cup of coffee on a wooden table, seen from above",
    "a cat’s face with whiskers, looking at the camera",
    "a rocket on its launch pad at night",
)


def write_model(folder: Path, size: str) -> None:
    """Write SDXL-Turbo's folder; `size` is "full" or "tenth"."""
    write_turbo_folder(folder, SIZES[size], (clip_tokenizer(), clip_tokenizer("!")))


def write_varied_photographs(folder: Path) -> None:
    """Write one photograph of each shape with its caption."""
    folder.mkdir(parents=True)
    for number, (shape, caption) in enumerate(zip(SHAPES, CAPTIONS, strict=True)):
        (folder / f"{number}.jpg").write_bytes(photograph(number, shape))
        (folder / f"{number}.txt").write_text(caption + "\n")
