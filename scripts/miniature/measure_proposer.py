"""Figures of the miniature's proposer, and what its CLIP says of true edits: what edits are made of."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from data.captioning.engines import EngineConfig
from data.captioning.tokens import TokenLimits
from data.pairs.proposals import Triplet, Written, make_triplets
from data.pairs.scores import score_pairs
from data.world.captions import long_caption
from data.world.description import Scene
from data.world.edits import EDIT_KINDS, edit_of
from data.world.splits import sample_scene
from eval.scene_edits.edit_set import sample_edit_set
from models.clip import ClipEmbeddings
from scripts.miniature.proposer import PROMPT

_DRAWS = 60  # of each kind: an edit that is not among them is one of fifty, which is rare
_ADDED = re.compile(r"add (?P<object>a .+ at the \w+)")


def proposer_figures(folder: Path, count: int, split: str = "test") -> dict[str, Any]:
    """The figures of the proposer in the miniature `folder` on the long captions of `count` scenes of a split.

    `usable`: share of the answers that are an edit; `right`: share of those whose result is what the instruction makes
    of the scene; `instructions`: how many different ones there are.
    """
    scenes = [sample_scene(split, 0, index) for index in range(count)]
    # As in configs/edit_pairs/miniature.yaml.
    engine = EngineConfig(
        "transformers", model=str(folder / "proposer"), max_new_tokens=96, temperature=1.0, top_p=0.9, batch=64
    ).load()
    written = [Written(f"{number:06d}", long_caption(scene)) for number, scene in enumerate(scenes)]
    found = make_triplets(written, engine, PROMPT, TokenLimits.load(str(folder / "teacher")))
    edits = [(scene, one) for scene, one in zip(scenes, found, strict=True) if isinstance(one, Triplet)]
    return {
        "usable": len(edits) / count,
        "right": float(np.mean([_is_right(scene, one) for scene, one in edits])) if edits else 0.0,
        "instructions": len({one.instruction for _, one in edits}),
        "scenes": count,
    }


def true_edit_scores(folder: Path, num: int = 60) -> dict[str, float]:
    """Scores that 99 of 100 true edits reach, by their names; `num` validation edits of each kind."""
    clip = ClipEmbeddings(str(folder / "clip"))
    edits = sample_edit_set("validation", num)
    captions = zip(edits.edits, edits.source_prompts, edits.target_prompts, strict=True)
    triplets = [Triplet("", "", before, after, edit.instruction) for edit, before, after in captions]
    scores = [vars(found) for found in score_pairs(clip, edits.sources, edits.truths, triplets)]
    return {name: float(np.quantile([score[name] for score in scores], 0.01)) for name in scores[0]}


def _is_right(scene: Scene, one: Triplet) -> bool:
    if added := _ADDED.fullmatch(one.instruction):
        objects, rest = one.source.split(", ", 1)
        pairs = (f"{objects} and {added['object']}, {rest}", f"{added['object']} and {objects}, {rest}")
        return one.target in pairs
    draw = np.random.default_rng(0)
    edits = (edit_of(draw, scene, kind) for kind in EDIT_KINDS for _ in range(_DRAWS))
    return (one.instruction, one.target) in {(e.instruction, long_caption(e.target)) for e in edits if e is not None}
