"""A captioned world of small scenes with known truth: splits, and a folder of pictures for the ordinary data stages.

    python -m data.scenes OUT --num 2000 --split train --captions mixed

What a scene is, how it looks, what is said of it and how it is edited lies in data/world.
"""

import json
import signal
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from data.jobs.command import run
from data.jobs.files import write_text
from data.jobs.sharing import remove_leftovers
from data.world.captions import long_caption, short_caption
from data.world.render import CANVASES, SQUARE, render
from data.world.sampling import pick
from data.world.splits import CANVAS_STREAM, CAPTION_STREAM, sample_scene, stream
from models.shapes import Size

CaptionKind = Literal["mixed", "short", "long"]
Canvases = Literal["square", "all"]

_FOLDER_SIZE = 1000
_LONG_SHARE = 0.75
_METADATA = "metadata.jsonl"


def _file_name(index: int) -> str:
    return f"{index // _FOLDER_SIZE:05d}/{index:06d}.png"


def _size(index: int, split: str, seed: int, canvases: Canvases) -> Size:
    """Height and width of one picture."""
    if canvases == "square":
        return SQUARE
    return CANVASES[pick(stream(split, seed, index, CANVAS_STREAM), tuple(CANVASES))]


def _write_one(
    index: int, out: Path, split: str, seed: int, captions: CaptionKind, canvases: Canvases
) -> dict[str, Any]:
    """Writes one picture; returns its row of metadata.jsonl."""
    scene = sample_scene(split, seed, index)
    short, long = short_caption(scene), long_caption(scene)
    says_all = captions == "long" or (
        captions == "mixed" and stream(split, seed, index, CAPTION_STREAM).random() < _LONG_SHARE
    )
    name = _file_name(index)
    Image.fromarray(render(scene, _size(index, split, seed, canvases))).save(out / name, compress_level=3)
    text = long if says_all else short
    return {"file_name": name, "text": text, "short": short, "long": long, "scene": scene.to_dict()}


def _prepare_folder(out: Path, num: int) -> None:
    """Makes the folders; ValueError where OUT holds a file that this command would not write."""
    names = {_file_name(index) for index in range(num)} | {_METADATA}
    if out.is_dir():
        remove_leftovers(out)
    strange = sorted(
        path for path in out.rglob("*") if path.is_file() and path.relative_to(out).as_posix() not in names
    )
    if strange:
        raise ValueError(
            f"{out} holds {len(strange)} files that do not belong to these {num} scenes, the first is {strange[0]}; "
            "give another OUT or empty the folder"
        )
    (out / _METADATA).unlink(missing_ok=True)  # complete only when it is there
    for first in range(0, num, _FOLDER_SIZE):
        (out / _file_name(first)).parent.mkdir(parents=True, exist_ok=True)


def write_scenes(
    out: Path,
    num: int = 2000,
    split: Literal["train", "validation", "test", "heldout"] = "train",
    seed: int = 0,
    captions: CaptionKind = "mixed",
    canvases: Canvases = "square",
    workers: int = 1,
) -> None:
    """Write scenes as OUT/00000/000000.png ... with OUT/metadata.jsonl, which comes last and marks the folder complete.

    Args:
        out: folder; new, empty, or left by the same command
        num: number of scenes
        split: train, validation and test never overlap; heldout has combinations of shape and colour that no other has
        seed: another seed gives other scenes of the same split
        captions: caption that is the `text`: short, long, or mixed (three quarters long); both stand beside it
        canvases: square for 64x64 pixels; all for a third each of square, wide (80x48) and tall (48x80) ones
        workers: processes; the result does not depend on it
    """
    if num < 1 or workers < 1:
        raise ValueError(f"num is {num} and workers is {workers}, expected at least 1 of both")
    _prepare_folder(out, num)
    write = partial(_write_one, out=out, split=split, seed=seed, captions=captions, canvases=canvases)
    progress = partial(tqdm, total=num, unit="scene", desc=f"{split} scenes")
    if workers == 1:
        rows = list(progress(map(write, range(num))))
    else:
        # Spawned, which is safe beside torch's threads; a terminal's Ctrl-C comes to them too and is left to this one.
        with get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            rows = list(progress(pool.imap(write, range(num), chunksize=64)))
    write_text(out / _METADATA, "".join(json.dumps(row) + "\n" for row in rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.scenes", write_scenes, arguments, positional=True)


if __name__ == "__main__":
    main()
