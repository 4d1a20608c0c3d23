"""Figures of the miniature's LLaVA: what it writes about test scenes, read back."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.captioning.config import CaptioningConfig
from data.captioning.maker import Caption, CaptionMaker
from data.captioning.tasks import condense, rewrite
from data.captioning.tokens import TokenLimits
from data.world.captions import describe_at_length, read_caption
from data.world.description import Scene, attribute_targets
from data.world.edits import EDIT_KINDS
from data.world.render import render
from data.world.splits import sample_edits, sample_scene
from eval.metrics.attributes import agreement, stack_targets
from eval.scene_edits.written_captions import caption_figures

_CHUNK = 64


def captioner_figures(folder: Path, count: int, split: str = "test") -> dict[str, Any]:
    """The figures of the LLaVA in the miniature `folder` on `count` scenes and as many edits of a split.

    Each is {"right": share of attributes that are said rightly, "by_attribute": ...}: `described` of its raw answers,
    `captions` of those condensed to what the student reads, `condensed` of scenes' own descriptions in many wordings,
    `rewritten` of scenes' own captions. Beside them the share of captions that fit without being cut.
    """
    student = str(folder / "student")
    maker = CaptionMaker(
        CaptioningConfig(
            "transformers", model=str(folder / "llava"), backbone=student, batch=_CHUNK, max_new_tokens=128
        )
    )
    limits = TokenLimits.load(student)
    scenes = [sample_scene(split, 0, index) for index in range(count)]
    edits = [sample_edits(split, 0, index, EDIT_KINDS[index % len(EDIT_KINDS)]) for index in range(count)]
    draw = np.random.default_rng(0)
    raw, final, condensed, rewritten, uncut = [], [], [], [], []
    for start in tqdm(range(0, count, _CHUNK), unit="batch", desc=f"captioner, {split}"):
        part = slice(start, start + _CHUNK)
        pictures = [Image.fromarray(render(scene)) for scene in scenes[part]]
        made = maker.captions(pictures, [None] * len(pictures))
        raw += [caption.raw if isinstance(caption, Caption) else "" for caption in made]
        final += [caption.text if isinstance(caption, Caption) else "" for caption in made]
        uncut += [isinstance(caption, Caption) and "cut" not in caption.checks for caption in made]
        wordy = [describe_at_length(scene, draw) for scene in scenes[part]]
        condensed += [found.text for found in condense(maker.captioner(), wordy, limits)]
        before, orders = zip(*[(edit.captions()[0], edit.instruction) for edit in edits[part]])
        rewritten += rewrite(maker.captioner(), before, orders)
    targets = [edit.target for edit in edits]
    return {
        "described": _shares(raw, scenes),
        "captions": _shares(final, scenes),
        "condensed": _shares(condensed, scenes),
        "rewritten": _shares(rewritten, targets),
        "uncut": float(np.mean(uncut)),
        "rewritten_exactly": float(np.mean([a == e.captions()[1] for a, e in zip(rewritten, edits)])),
        "scenes": count,
    }


def _shares(captions: list[str], scenes: list[Scene]) -> dict[str, Any]:
    """Shares without their errors; the slots' attributes together, as on the rest of the card."""
    said = stack_targets(map(read_caption, captions))
    return {
        "right": caption_figures(captions, scenes)["right"]["mean"],
        "by_attribute": agreement(said, stack_targets(map(attribute_targets, scenes))),
    }
