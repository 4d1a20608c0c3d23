"""Captions that a model writes, in the place of the scenes' own.

The edit of a photograph starts from them: a captioner describes it, and rewrites its description by an instruction.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from data.captioning.maker import Caption, CaptionMaker
from data.captioning.tasks import rewrite
from data.jobs.kept import KeptFolder, digest
from data.world.captions import read_caption
from data.world.description import ATTRIBUTE_VALUES, Scene, attribute_targets
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.result import pixels


def kept_captions(edits: EditSet, maker: CaptionMaker, kept: KeptFolder, title: str) -> tuple[EditSet, dict[str, Any]]:
    """Return what `write_captions` gives, kept in a folder and found there again.

    Args:
        title: Words before the progress bar.
    """
    timed_on = edits.sources.device.type
    piece = f"captions-{digest(edits.digest, maker.identity(), timed_on)}"
    for _ in kept.missing({piece: len(edits)}, f"{title}, captions and their changes by the instructions", "caption"):
        written, figures = write_captions(edits, maker)
        kept.keep(piece, {"sources": written.source_prompts, "targets": written.target_prompts, "figures": figures})
    record = kept.read(piece)
    sources, targets = tuple(record["sources"]), tuple(record["targets"])
    return replace(edits, source_prompts=sources, target_prompts=targets), record["figures"]


def write_captions(edits: EditSet, maker: CaptionMaker) -> tuple[EditSet, dict[str, Any]]:
    """`edits` with source prompts that `maker` wrote and target prompts that it rewrote by the instructions.

    A picture that gets no caption has an empty one. The second value are figures: seconds an image, and of scenes
    estimates of the share of attributes that source and target prompts say rightly, by attribute too, and of the
    rewriting alone (`rewritten`, from the scenes' own captions).
    """
    started = time.perf_counter()
    made = maker.captions([Image.fromarray(picture) for picture in pixels(edits.sources)], [None] * len(edits))
    sources = tuple(caption.text if isinstance(caption, Caption) else "" for caption in made)
    described = time.perf_counter()
    orders = [edit.instruction for edit in edits.edits]
    targets = tuple(rewrite(maker.captioner(), sources, orders))
    seconds = {
        "seconds_caption": (described - started) / len(edits),
        "seconds_rewrite": (time.perf_counter() - described) / len(edits),
    }
    said = {}
    if scenes := edits.scenes:
        rewritten = rewrite(maker.captioner(), edits.source_prompts, orders)
        said = {
            "source": caption_figures(sources, [edit.source for edit in scenes]),
            "target": caption_figures(targets, [edit.target for edit in scenes]),
            "rewritten": caption_figures(rewritten, [edit.target for edit in scenes]),
        }
    figures = {**said, "rejected": sum(not isinstance(caption, Caption) for caption in made), **seconds}
    return replace(edits, source_prompts=sources, target_prompts=targets), figures


def caption_figures(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, Any]:
    """`right`, the share of a caption's attributes that are as in its scene, and the same `by_attribute`.

    An attribute that is said and is not there counts as wrong.
    """
    found = [_said_rightly(read_caption(text), attribute_targets(scene)) for text, scene in zip(captions, scenes)]
    shares = [float(np.mean(list(row.values()))) for row in found]
    columns = {name: [row[name] for row in found if name in row] for name in ATTRIBUTE_VALUES}
    return {
        "right": Estimate.of(shares).to_dict(),
        "by_attribute": {name: Estimate.of(map(float, column)).to_dict() for name, column in columns.items()},
    }


def _said_rightly(said: Mapping[str, int], true: Mapping[str, int]) -> dict[str, bool]:
    """Whether each attribute that is there or is said is said rightly."""
    return {name: said[name] == true[name] for name in ATTRIBUTE_VALUES if max(said[name], true[name]) >= 0}
