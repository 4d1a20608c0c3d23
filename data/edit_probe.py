"""Edits that a training tries on held-out pictures: a captioner proposes one for each of some captions, once.

    python -m data.edit_probe SHARDS OUT.jsonl --model llava-hf/llava-1.5-7b-hf --backbone BACKBONE

SHARDS is a finished folder of data.caption or data.encode, the `data.validation` of a training. OUT is what its
`data.probe` reads, {"key": ..., "caption": ..., "instruction": ..., "target": ...} a line; it may be mended by hand.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.captioning.tokens import TokenLimits
from data.jobs.command import run
from data.jobs.errors import ShardError, work_begins
from data.jobs.files import whole
from data.pairs.config import EditProbeConfig
from data.pairs.proposals import Triplet, make_triplets, read_captions

logger = logging.getLogger(__name__)


def write_edit_probe(source: Path, out: Path, config: EditProbeConfig) -> int:
    """Write OUT; returns the number of its edits.

    Args:
        source: finished folder of shards whose captions are read.
        out: file of the edits, ending in .jsonl.
        config: options of the engine and of what it is asked.

    Raises:
        ShardError: for an input without captions, an OUT that is there already, or no caption with a usable edit.
        CaptionerError: when the engine cannot go on.
    """
    if out.suffix != ".jsonl":
        raise ShardError(f"OUT is {out}, expected a file that ends in .jsonl")
    if out.exists():
        raise ShardError(f"{out} is there already and is kept: trainings compare their figures on the same edits")
    if not source.is_dir():
        raise ShardError(f"SHARDS {source} is not a folder of shards")
    written = read_captions(source, with_edits=False, count=config.num)
    limits = TokenLimits.load(config.backbone)
    captioner = config.load()
    work_begins()
    parts = [written[start : start + config.batch] for start in range(0, len(written), config.batch)]
    asked = tqdm(parts, "edits", unit="batch")
    found = [one for part in asked for one in make_triplets(part, captioner, config.prompt, limits)]
    edits = [one for one in found if isinstance(one, Triplet)]
    for drop in found:
        if not isinstance(drop, Triplet):
            logger.warning("no edit of %s: %s %s", drop.source, drop.reason, drop.detail)
    if not edits:
        raise ShardError(
            f"none of {len(written)} captions has an edit that can be used; try another --model or --prompt"
        )
    rows = [{"key": e.name, "caption": e.source, "instruction": e.instruction, "target": e.target} for e in edits]
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    logger.info("%d edits of %d captions in %s, for --data.probe", len(edits), len(written), out)
    return len(edits)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.edit_probe", write_edit_probe, arguments, positional=True)


if __name__ == "__main__":
    main()
