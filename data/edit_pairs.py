"""Stage captions -> shards of edits: an instruction, a picture before and a picture after it, all of them made.

    python -m data.edit_pairs CAPTIONS OUT --config configs/edit_pairs/sd15.yaml

CAPTIONS is a finished folder of data.caption, whose captions alone are read, or a .jsonl list. An engine proposes an
edit of each caption, a text-to-image model draws both captions many times (InstructPix2Pix, arXiv 2211.09800, section
3.1), and CLIP decides which pairs are kept. Run the same command again after a kill; `accelerate launch -m
data.edit_pairs ...` and `srun` divide the work over processes, each with its own GPU.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.captioning.tokens import TokenLimits
from data.jobs.command import run
from data.jobs.files import temporary_path
from data.jobs.sharing import kept_alive
from data.pairs.config import EditPairsConfig
from data.pairs.proposals import read_captions
from data.shards.stage import Outcome, Unit, divide, run_stage


def make_edit_pairs(source: str | Path, out: str | Path, config: EditPairsConfig) -> dict[str, Any]:
    """Runs the stage; returns the manifest of `out`.

    Raises:
        ShardError: for an input that holds no captions, a backbone or CLIP that cannot be loaded, or no pair that is
            good enough; see also `data.shards.stage.run_stage`.
        data.captioning.interface.CaptionerError: when the engine cannot go on.
    """
    out = Path(out)
    written = read_captions(source, with_edits=not config.writes, count=config.captions)
    limits = TokenLimits.load(config.backbone)
    from data.pairs.maker import PairMaker  # torch and diffusers take seconds

    maker = PairMaker.load(config, limits)
    names = [one.name for one in written]
    contents = [hashlib.sha256(repr(one).encode("utf-8", "surrogateescape")).digest() for one in written]

    def process(unit: Unit) -> Iterator[Outcome]:
        # A caption may take longer than a claim lives.
        with kept_alive(temporary_path(out, f"{unit.name}.tar")):
            yield from maker.outcomes(unit.items)

    units = divide(names, written, config.unit_size, contents)
    return run_stage(units, out, process, maker.origin(), config.max_damage, counted="caption")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.edit_pairs", make_edit_pairs, arguments, positional=True)


if __name__ == "__main__":
    main()
