"""Photographs with objects pasted on them, before and after an edit, in PIE-Bench's layout: true edits that look real.

    python -m data.composites OBJECTS PHOTOGRAPHS OUT --num 20

OBJECTS holds cut-out pictures with transparency, PHOTOGRAPHS pictures without; both are a folder of pictures with
captions beside them, a list (NAME.jsonl) or a folder of tars. OUT is what `python -m eval.pie_bench --data OUT` reads:
mapping_file.json, annotation_images, and the true edits beside them.
"""

import logging
import signal
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from data.compositing.edits import KINDS, Kind
from data.compositing.inputs import open_captioned, read_objects, read_photographs
from data.compositing.maker import CompositesPlan, complete, make_composites, told_left_out
from data.jobs.command import run
from data.jobs.sharing import Ranks

logger = logging.getLogger(__name__)


def write_composites(
    objects: Path,
    photographs: Path,
    out: Path,
    num: int = 20,
    kinds: list[Kind] | Literal["all"] = "all",
    resolution: int = 512,
    shapes: Literal["square", "buckets"] = "square",
    min_size: int | None = None,
    leave_out: list[str] | None = None,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write edits of composites as a PIE-Bench folder; mapping_file.json comes last and marks it complete.

    Args:
        objects: cut-out objects with captions; of a .txt beside one the first line counts
        photographs: pictures with captions on which the objects are laid
        out: folder; the same command goes on where it was interrupted
        num: edits of each kind
        kinds: kinds of edits, as '[add_object, change_colour]': change_object, add_object, delete_object, move_object,
            change_colour, change_background
        resolution: side in pixels of the square, or of the square with the area of the buckets
        shapes: square keeps the centre square of a photograph; buckets nearly all of it, cropped to the nearest of the
            shapes that models take (as data.caption has them)
        min_size: shorter side of a photograph in pixels, at least; by default the resolution
        leave_out: names of folders whose objects are not wanted, such as '[cartoon, symbols]'
        seed: another seed draws other edits
        workers: processes; the result does not depend on it
    """
    if min(num, workers) < 1:
        raise ValueError(f"num is {num} and workers is {workers}, expected at least 1 of both")
    if resolution < 32 or resolution % (64 if shapes == "buckets" else 8):
        raise ValueError(f"--resolution is {resolution}, expected a multiple of {64 if shapes == 'buckets' else 8}")
    chosen = KINDS if kinds == "all" else tuple(kinds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"--kinds is {list(chosen)}, expected at least one, and each once")
    launch = Ranks.of_launch()
    cutouts, bad = read_objects(open_captioned(objects, "first"), resolution, leave_out or (), launch.rank == 0)
    source = open_captioned(photographs)
    order = np.random.default_rng(seed).permutation(len(source.names)).tolist()
    wanted = num * len(chosen) + 1  # one that every edit's background can become
    least = resolution if min_size is None else min_size
    grounds, worse = read_photographs(source, order, wanted, resolution, shapes == "buckets", least, launch.rank == 0)
    for what, used, others in (("objects", cutouts, bad), ("photographs", grounds, worse)):
        logger.info(told_left_out(what, len(used), others))
        if not used:
            raise ValueError(f"no picture of --{what} can be used; {told_left_out(what, 0, others)}")
    plan = CompositesPlan(objects, photographs, cutouts, grounds, chosen, num, resolution, shapes, seed)
    logger.info("%d edits: %s", len(plan.edits), ", ".join(chosen))  # what cannot be made is told before work begins
    if workers == 1:
        make_composites(plan, out, launch)
    else:
        ranks = [Ranks(launch.rank * workers + number, launch.world_size * workers) for number in range(workers)]
        # Spawned, which is safe beside threads; a terminal's Ctrl-C comes to them too and is left to this one.
        with get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            pool.starmap(make_composites, [(plan, out, rank) for rank in ranks], chunksize=1)
            pool.close()
            pool.join()
    if launch.rank == 0:
        complete(plan, out, [*bad, *worse])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.composites", write_composites, arguments, positional=True)


if __name__ == "__main__":
    main()
