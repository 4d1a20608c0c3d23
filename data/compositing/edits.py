"""Edits of composites: what is drawn for each, its two pictures with the mask between them, and its words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from data.compositing.colours import recoloured
from data.compositing.inputs import (
    LARGEST_ENLARGEMENT,
    SMALLEST_OBJECT,
    GroundPhotograph,
    PastedObject,
    object_picture,
    photograph_pixels,
)
from data.compositing.pasting import PastedLayer, Standpoint, layer, resized
from data.compositing.wording import (
    PLACES,
    coloured,
    definite,
    detailed_prompt,
    first_sentence,
    head_noun,
    inside_sentence,
    marked,
    placed,
)
from data.pictures.source import Source

Kind = Literal["change_object", "add_object", "delete_object", "move_object", "change_colour", "change_background"]
"""Kinds of edits; all but the fourth have a type of PIE-Bench's of the same name."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_LARGEST_OBJECT = 0.42
"""As SMALLEST_OBJECT."""
_WIDEST, _HIGHEST = 0.6, 0.62
"""Width and height of an object at most, as shares of the picture's."""
_BOTTOM = (0.86, 0.97)
"""Where objects stand, as a share of the picture's height."""
_MIDDLES = {"left": 0.26, "middle": 0.5, "right": 0.74}
"""Where the middle of an object lies, as a share of the picture's width, give or take _SHIFT."""
_SHIFT = 0.04

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class CompositeEdit:
    """An edit as it was drawn.

    Args:
        photographs: the photograph, and that of another background.
        objects: the object, and the one that takes its place.
        area: root of the objects' areas, as a share of the picture's shorter side.
        bottom: where they stand, as a share of the height.
        places: where the object stands before and after: names of PLACES.
        shift: what its middle is away from that of the place, as a share of the width.
        colour: the object's new colour.
    """

    kind: Kind
    photographs: tuple[GroundPhotograph, ...]
    objects: tuple[PastedObject, ...]
    area: float
    bottom: float
    places: tuple[str, str]
    shift: float
    colour: str | None = None


@dataclass(frozen=True)
class EditPictures:
    """Both pictures of an edit, uint8 [H, W, 3], and where they may differ, bool [H, W]."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class EditWords:
    """What is said of an edit.

    Args:
        short: prompts before and after, with PIE-Bench's brackets; long: detailed ones, without.
        instruction: the edit as an order.
        blended: the words of both prompts that name what changes, or "".
    """

    short: tuple[str, str]
    long: tuple[str, str]
    instruction: str
    blended: str


def draw_edit(
    rng: np.random.Generator,
    kind: Kind,
    index: int,
    objects: Sequence[PastedObject],
    photographs: Sequence[GroundPhotograph],
) -> CompositeEdit:
    """A random edit of a kind on the photograph whose turn it is.

    Args:
        index: number of the edit, by which photographs take turns.

    Raises:
        ValueError: nothing of what is given allows such an edit.
    """
    first = photographs[index % len(photographs)]
    chosen = [item for item in objects if item.others] if kind == "change_colour" else list(objects)
    if not chosen:
        raise ValueError(
            f"none of the {len(objects)} objects can be given another colour: expected one of a single colour whose "
            "caption names no other; give more, or leave change_colour out of --kinds"
        )
    item = _pick(rng, chosen)
    before, after = (str(place) for place in rng.permutation(list(PLACES))[:2])
    area = float(rng.uniform(SMALLEST_OBJECT, _LARGEST_OBJECT))
    bottom, shift = float(rng.uniform(*_BOTTOM)), float(rng.uniform(-_SHIFT, _SHIFT))
    edit = CompositeEdit(kind, (first,), (item,), area, bottom, (before, before), shift)
    match kind:
        case "change_object":
            others = [other for other in objects if other.phrase != item.phrase]
            return replace(edit, objects=(item, _other(rng, others, "object", kind)))
        case "change_background":
            grounds = [photograph for photograph in photographs if photograph.caption != first.caption]
            return replace(
                edit, photographs=(first, replace(_other(rng, grounds, "photograph", kind), size=first.size))
            )
        case "change_colour":
            return replace(edit, colour=_pick(rng, item.others))
        case "move_object":
            return replace(edit, places=(before, after))
    return edit


def make_pictures(edit: CompositeEdit, objects: Source, photographs: Source) -> EditPictures:
    """The pictures of an edit; they are equal, bit by bit, outside of the mask.

    The mask is where an object or its shadow is, before or after, as far as the edit concerns it; of another background
    all but what the object covers completely; of another colour the object alone.
    """
    grounds = [photograph_pixels(photographs, photograph) for photograph in edit.photographs]
    first = edit.objects[0]
    if edit.kind in ("add_object", "delete_object"):
        laid = _laid(edit, first, edit.places[0], objects, grounds)
        empty, full = grounds[0], laid.on(grounds[0])
        if edit.kind == "add_object":
            return EditPictures(empty, full, laid.reach)
        return EditPictures(full, empty, laid.reach)
    before = _laid(edit, first, edit.places[0], objects, grounds)
    if edit.kind == "change_background":
        return EditPictures(before.on(grounds[0]), before.on(grounds[1]), before.behind)
    after = _laid(edit, edit.objects[-1], edit.places[1], objects, grounds, edit.colour)
    mask = before.alpha > 0 if edit.kind == "change_colour" else before.reach | after.reach
    return EditPictures(before.on(grounds[0]), after.on(grounds[0]), mask)


def edit_words(edit: CompositeEdit) -> EditWords:
    """Prompts and instruction of an edit."""
    phrases = _phrases(edit)
    captions = [photograph.caption for photograph in (edit.photographs[0], edit.photographs[-1])]
    short, long = [], []
    for caption, phrase, place in zip(captions, phrases, edit.places, strict=True):
        named_place = place if edit.kind == "move_object" else None
        short.append(placed(first_sentence(caption), phrase, named_place) if phrase else first_sentence(caption))
        long.append(detailed_prompt(caption, phrase, place) if phrase else caption)
    heads = " ".join(head_noun(phrase) for phrase in phrases if phrase)
    blended = heads if edit.kind in ("change_object", "change_colour") else ""
    return EditWords(marked(short[0], short[1]), (long[0], long[1]), _instruction(edit), blended)


def _phrases(edit: CompositeEdit) -> tuple[str | None, str | None]:
    """What stands on the photograph before and after."""
    first, last = edit.objects[0], edit.objects[-1]
    if edit.kind == "change_colour":
        return _coloured(first, first.colour), _coloured(first, edit.colour)
    return (
        None if edit.kind == "add_object" else first.phrase,
        None if edit.kind == "delete_object" else last.phrase,
    )


def _coloured(item: PastedObject, colour: str | None) -> str:
    assert item.colour and colour, "only what has a colour is given another one"
    return coloured(item.phrase, item.colour, colour)


def _instruction(edit: CompositeEdit) -> str:
    """The edit as an order."""
    first, last = edit.objects[0], edit.objects[-1]
    the = definite(first.phrase)
    match edit.kind:
        case "change_object":
            return f"replace {the} with {last.phrase}"
        case "add_object":
            return f"add {first.phrase} in the foreground {PLACES[edit.places[0]]}"
        case "delete_object":
            return f"remove {the}"
        case "move_object":
            return f"move {the} to the {edit.places[1]}"
        case "change_colour":
            return f"change the colour of {the} from {first.colour} to {edit.colour}"
        case "change_background":
            return f"change the background to {inside_sentence(first_sentence(edit.photographs[1].caption))}"


def _laid(
    edit: CompositeEdit,
    item: PastedObject,
    where: str,
    objects: Source,
    grounds: Sequence[NDArray[np.uint8]],
    colour: str | None = None,
) -> PastedLayer:
    """An object at its place; the light is that of all grounds."""
    height, width = grounds[0].shape[:2]
    place = _place(edit, item.size, where, width, height)
    light, alpha = resized(object_picture(objects.read(item.number).content), (place.width, place.height))
    shown = light if colour is None else recoloured(light, alpha, colour)
    return layer(shown, alpha, place, grounds, original=light)


def _place(edit: CompositeEdit, size: tuple[int, int], where: str, width: int, height: int) -> Standpoint:
    """The place of an object of a size (width, height) in a picture, wholly inside it."""
    own = (size[0] * size[1]) ** 0.5
    room = _WIDEST * width / size[0], _HIGHEST * height / size[1]
    scale = min(edit.area * min(width, height) / own, LARGEST_ENLARGEMENT, *room)
    wide, high = (max(1, round(scale * length)) for length in size)
    left = round((_MIDDLES[where] + edit.shift) * width - wide / 2)
    return Standpoint(min(max(left, 0), width - wide), max(high, round(edit.bottom * height)), wide, high)


def _other(rng: np.random.Generator, among: Sequence[Drawn], what: str, kind: str) -> Drawn:
    if not among:
        raise ValueError(f"{kind} needs a second {what} with another caption; give more, or leave it out of --kinds")
    return _pick(rng, among)


def _pick(rng: np.random.Generator, among: Sequence[Drawn]) -> Drawn:
    return among[int(rng.integers(len(among)))]
