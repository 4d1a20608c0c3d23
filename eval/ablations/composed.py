"""Ablation: two changes of one picture, at once or one after the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from data.world.captions import long_caption
from data.world.description import ATTRIBUTE_VALUES, Scene
from data.world.edits import Edit
from data.world.splits import sample_edits
from eval.ablations.bench import OF_EDITS, Ablation, Bench, Setting, Work, above, edit_strips, strip_columns
from eval.scene_edits.edit_set import EditSet, PictureEdit, edit_set
from eval.scene_edits.judge import EditScores
from eval.scene_edits.result import pixels
from models.pictures import from_pictures
from models.turboedit_pipeline import TurboEditPipeline

FIRST = ("change_colour", "change_object", "change_content", "change_material")
"""Kinds of the first change, which is one of an object; the second is one of background or style."""

SECOND = ("background", "style")

WAYS = {
    "prompt": "one prompt that says both",
    "sum": "sum of two directions",
    "continued": "edit on the edit",
    "anew": "edit of the picture, inverted anew",
}
_SHOWN = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Composed:
    """N pictures, each with two changes.

    Args:
        both: the edits with both changes.
        first, second: captions of the pictures with one of the changes.
    """

    both: EditSet
    first: tuple[str, ...]
    second: tuple[str, ...]

    def batches(self, size: int) -> Iterator["Composed"]:
        """Yield the pictures in order, at most `size` at a time."""
        for number, part in enumerate(self.both.batches(size)):
            rows = slice(number * size, (number + 1) * size)
            yield Composed(part, self.first[rows], self.second[rows])


def composed_edits(num: int, seed: int, device: torch.device | str = "cpu") -> Composed:
    """`num` pictures of each kind in FIRST, from the test split; the second changes take turns."""
    both, first, second = [], [], []
    for index in range(num):
        for number, kind in enumerate(FIRST):
            edit = sample_edits("test", seed, index, kind)
            name = SECOND[(index + number) % len(SECOND)]
            values = [value for value in ATTRIBUTE_VALUES[name] if value != getattr(edit.source, name)]
            value = values[np.random.default_rng((seed, index, number)).integers(len(values))]
            words = f"{edit.instruction}, and change the {name} to {value}"
            both.append(Edit(kind, edit.source, _with(edit.target, name, value), words))
            first.append(long_caption(edit.target))
            second.append(long_caption(_with(edit.source, name, value)))
    return Composed(edit_set(both, device), tuple(first), tuple(second))


def composed_with(edits: EditSet, words: str) -> Composed:
    """The edits of pictures without a scene, each with a second change that is said by words behind the description."""
    changed = [
        replace(edit, instruction=f"{edit.instruction}; {words}")
        for edit in edits.edits
        if isinstance(edit, PictureEdit)
    ]
    both = replace(
        edits,
        edits=tuple(changed),
        truths=torch.full_like(edits.truths[:1], torch.nan).expand_as(edits.truths),
        masks=torch.ones_like(edits.masks),  # a second change may be anywhere
        target_prompts=tuple(_said_behind(prompt, words) for prompt in edits.target_prompts),
    )
    return Composed(both, edits.target_prompts, tuple(_said_behind(prompt, words) for prompt in edits.source_prompts))


def _said_behind(prompt: str, words: str) -> str:
    return f"{prompt.rstrip(' .')}, {words}"


def _with(scene: Scene, name: str, value: str) -> Scene:
    """`scene` with another background or style."""
    return replace(scene, background=value) if name == "background" else replace(scene, style=value)


@torch.no_grad()
def ablate_composed(bench: Bench, composed: Composed) -> Ablation:
    """Two changes of each picture, in every one of WAYS; `changed` takes both."""
    edits = composed.both

    def measure() -> list[Setting]:
        references = bench.setup.judge.references(edits, bench.pipeline.backbone)
        scores: dict[str, list[EditScores]] = {way: [] for way in WAYS}
        pictures: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        done = 0
        for part in composed.batches(bench.setup.batch):
            for way, images in _edited(bench.pipeline, part).items():
                compared = references.part(done, len(part.both))
                scores[way] += bench.setup.judge.scores(part.both, compared, images)
                pictures[way] += pixels(images)
                bench.setup.kept.tick(len(part.both))
            done += len(part.both)
        return [bench.judged(words, scores[way], pictures[way]) for way, words in WAYS.items()]

    work = Work("composed", [edits.digest, composed.first, composed.second], len(WAYS) * len(edits), measure)
    (settings,) = bench.measured("composed", [work])
    found = dict(zip(WAYS, settings, strict=True))
    changes = (
        "of an object and of the background or the style, and counts as changed where both are read"
        if edits.scenes
        else "its own and one that is said behind its description, for which there is neither mask nor truth"
    )
    return Ablation(
        name="composed",
        title="Several attributes, and edits on edits",
        words=(
            f"Each picture gets two changes, {changes}. Without a mask and at strength 1 an edit on an edit has the "
            "noises and the prompt of a single edit that says both, so its picture is the same; a picture that is "
            "inverted anew passes the VAE and the encoder a second time."
        ),
        measures=OF_EDITS,
        settings=settings,
        edits=edits.edits,
        evidence={
            "several_attributes": [above("changed", found[way], 0.5) for way in ("prompt", "sum")],
            "continued_edits": [above("changed", found["continued"], 0.5)],
        },
        columns=strip_columns(edits, [setting.name for setting in settings]),
        strips=edit_strips(edits, _SHOWN, settings),
    )


def _edited(pipeline: TurboEditPipeline, part: Composed) -> dict[str, Tensor]:
    """The pictures [B, 3, H, W] with both changes, by the way in which they were made."""
    target = part.both.target_prompts
    inversion = pipeline.invert(part.both.sources, part.both.source_prompts)
    # A mapping takes descriptions of several images as it takes one: the type of its keys says less than it does.
    directions = cast(Mapping[str, float], {part.first: 1.0, part.second: 1.0})
    edit = partial(pipeline.edit, outside="reconstruction")  # the paper's form, whose claims these are
    once = edit(inversion, part.first)
    again = pipeline.invert(from_pictures(once.images).to(part.both.sources.device), part.first)
    outputs = {
        "prompt": edit(inversion, target),
        "sum": edit(inversion, directions),
        "continued": edit(once.inversion, target),
        "anew": edit(again, target),
    }
    return {way: from_pictures(output.images).to(part.both.sources.device) for way, output in outputs.items()}
