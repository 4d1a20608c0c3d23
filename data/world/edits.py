"""Edits of scenes with known truth: the kinds of PIE-Bench that a scene can show, their instructions and masks.

An edit changes what its instruction says and keeps all nuisance, as that follows from seeds which it does not touch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.world.captions import describe_object, long_caption, name_object, short_caption
from data.world.description import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    MATERIALS,
    OBJECT_VALUES,
    PAIRS,
    PLACES,
    POSES,
    SHAPES,
    SLOTS,
    STYLES,
    Scene,
    SceneObject,
    attribute_targets,
    has_heldout_pair,
)
from data.world.render import SQUARE, object_coverage
from data.world.sampling import draw_object, draw_scene, pick
from models.shapes import Size

Proposal = tuple[Scene, str]
"""The scene after an edit, and the instruction."""


@dataclass(frozen=True)
class Edit:
    """A scene before and after, with the order that leads from one to the other."""

    kind: str
    source: Scene
    target: Scene
    instruction: str

    def mask(self, size: Size = SQUARE) -> NDArray[np.bool_]:
        """Mask of the pixels that the edit may change, bool [H, W].

        Style: all. Background: all that objects do not cover completely. Otherwise the changed objects, before and
        after.
        """
        mask = np.zeros(size, dtype=bool)
        if self.source.style != self.target.style:
            return ~mask
        if self.source.background != self.target.background:
            uncovered = np.ones(size, dtype=np.float32)
            for item in self.source.objects:
                uncovered *= 1 - object_coverage(item, size)
            mask |= uncovered > 0
        for item in set(self.source.objects) ^ set(self.target.objects):
            mask |= object_coverage(item, size) > 0
        return mask

    def captions(self, long: bool = True) -> tuple[str, str]:
        """Captions of source and target."""
        caption = long_caption if long else short_caption
        return caption(self.source), caption(self.target)


def _other(rng: np.random.Generator, values: tuple[str, ...], value: str) -> str:
    return pick(rng, [choice for choice in values if choice != value])


def _with_object(scene: Scene, number: int, item: SceneObject) -> Scene:
    objects = list(scene.objects)
    objects[number] = item
    return replace(scene, objects=tuple(objects))


def _any_object(rng: np.random.Generator, scene: Scene) -> tuple[int, SceneObject, str]:
    """Number, description and name of one of the objects."""
    number = int(rng.integers(len(scene.objects)))
    return number, scene.objects[number], name_object(scene, number)


def _change_object(rng: np.random.Generator, scene: Scene) -> Proposal:
    number, item, name = _any_object(rng, scene)
    shape = _other(rng, SHAPES, item.shape)
    pose = "upright" if shape == "circle" else item.pose
    return _with_object(scene, number, replace(item, shape=shape, pose=pose)), f"turn {name} into a {shape}"


def _add_object(rng: np.random.Generator, scene: Scene) -> Proposal | None:
    old = scene.objects[0]
    if len(scene.objects) > 1 or old.place == "center":
        return None
    first, second = next(pair for pair in PAIRS if old.place in pair)
    new = draw_object(rng, second if old.place == first else first)
    objects = (old, new) if old.place == first else (new, old)
    return replace(scene, objects=objects), f"add {describe_object(new)} at the {new.place}"


def _delete_object(rng: np.random.Generator, scene: Scene) -> Proposal | None:
    if len(scene.objects) == 1:
        return None
    number, _, name = _any_object(rng, scene)
    return replace(scene, objects=(scene.objects[1 - number],)), f"remove {name}"


def _change_content(rng: np.random.Generator, scene: Scene) -> Proposal:
    number, item, name = _any_object(rng, scene)
    fill = _other(rng, FILLS, item.fill)
    return _with_object(scene, number, replace(item, fill=fill)), f"make {name} {fill}"


def _change_pose(rng: np.random.Generator, scene: Scene) -> Proposal | None:
    number, item, name = _any_object(rng, scene)
    if len(scene.objects) == 1 and rng.random() < 0.5:
        place = _other(rng, PLACES, item.place)
        return _with_object(scene, number, replace(item, place=place)), f"move {name} to the {place}"
    if item.shape == "circle":
        return None
    pose = _other(rng, POSES, item.pose)
    return _with_object(scene, number, replace(item, pose=pose)), f"make {name} {pose}"


def _change_colour(rng: np.random.Generator, scene: Scene) -> Proposal:
    number, item, name = _any_object(rng, scene)
    colour = _other(rng, COLOURS, item.colour)
    return _with_object(scene, number, replace(item, colour=colour)), f"make {name} {colour}"


def _change_material(rng: np.random.Generator, scene: Scene) -> Proposal:
    number, item, name = _any_object(rng, scene)
    material = _other(rng, MATERIALS, item.material)
    return _with_object(scene, number, replace(item, material=material)), f"make {name} {material}"


def _change_background(rng: np.random.Generator, scene: Scene) -> Proposal:
    background = _other(rng, BACKGROUNDS, scene.background)
    return replace(scene, background=background), f"change the background to {background}"


def _change_style(rng: np.random.Generator, scene: Scene) -> Proposal:
    style = _other(rng, STYLES, scene.style)
    return replace(scene, style=style), f"change the style to {style}"


_PROPOSERS: dict[str, Callable[[np.random.Generator, Scene], Proposal | None]] = {
    "change_object": _change_object,
    "add_object": _add_object,
    "delete_object": _delete_object,
    "change_content": _change_content,
    "change_pose": _change_pose,
    "change_colour": _change_colour,
    "change_material": _change_material,
    "change_background": _change_background,
    "change_style": _change_style,
}
EDIT_KINDS = tuple(_PROPOSERS)


def sample_edit(rng: np.random.Generator, kind: str, heldout: bool = False) -> Edit:
    """A random edit of a random scene; both its scenes obey the rule of `draw_scene`.

    ValueError for an unknown kind.
    """
    while True:
        edit = edit_of(rng, draw_scene(rng, heldout), kind)
        if edit is not None and has_heldout_pair(edit.target) == heldout:
            return edit


def edit_of(rng: np.random.Generator, scene: Scene, kind: str) -> Edit | None:
    """A random edit of a scene; None where it has none of that kind, or by chance.

    ValueError for an unknown kind.
    """
    if kind not in _PROPOSERS:
        raise ValueError(f"edit kind is {kind!r}, expected one of {', '.join(EDIT_KINDS)}")
    proposal = _PROPOSERS[kind](rng, scene)
    return None if proposal is None else Edit(kind, scene, *proposal)


def changed_attributes(edit: Edit) -> tuple[str, ...]:
    """Attributes that must have a new value in the target.

    A new object counts with all that can be seen of it. The pose that a circle gains or loses with its shape does not.
    """
    source, target = attribute_targets(edit.source), attribute_targets(edit.target)
    origins = _origins(edit)
    new_slots = [slot for slot in SLOTS if target[f"{slot}_shape"] >= 0 and slot not in origins]
    changed = [name for name in ("layout", "background", "style") if source[name] != target[name]]
    changed += [f"{slot}_{name}" for slot in new_slots for name in OBJECT_VALUES if target[f"{slot}_{name}"] >= 0]
    for slot, origin in origins.items():
        for name in OBJECT_VALUES:
            before, after = source[f"{origin}_{name}"], target[f"{slot}_{name}"]
            if before != after and before >= 0 and after >= 0:
                changed.append(f"{slot}_{name}")
    return tuple(changed)


def kept_attributes(edit: Edit) -> dict[str, str]:
    """Attributes that the edit must keep: name in the target -> name in the source.

    The names differ where an object that came or went moves another one to the other slot.
    """
    source, target = attribute_targets(edit.source), attribute_targets(edit.target)
    names = {name: name for name in ("layout", "background", "style")}
    names |= {f"{slot}_{name}": f"{origin}_{name}" for slot, origin in _origins(edit).items() for name in OBJECT_VALUES}
    return {after: before for after, before in names.items() if source[before] == target[after] >= 0}


def _origins(edit: Edit) -> dict[str, str]:
    """Slot of each of the target's objects that was there before -> its slot in the source.

    Objects are known by their seeds, which no edit changes.
    """
    before = {item.seed: slot for slot, item in zip(SLOTS, edit.source.objects, strict=False)}
    after = zip(SLOTS, edit.target.objects, strict=False)
    return {slot: before[item.seed] for slot, item in after if item.seed in before}
