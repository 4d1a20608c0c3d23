"""Parts of a scene of the miniature world: its words, objects, backgrounds, styles and nuisance seeds.

A description is plain data. Everything that a picture shows follows from it, including what no caption says (offset,
exact angle, hue, crop, lighting): that follows from the `seed` of each object and of the scene, so an edit keeps it.
"""

from dataclasses import asdict, dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
SIZES = ("small", "large")
FILLS = ("solid", "striped")
MATERIALS = ("plain", "stone")
POSES = ("upright", "tilted")
PLACES = ("center", "left", "right", "top", "bottom")
PAIRS = (("left", "right"), ("top", "bottom"))
BACKGROUNDS = ("grey", "teal", "sunset", "sky", "brick", "grass", "fur", "space")
STYLES = ("natural", "night", "faded")

HELDOUT_PAIRS = frozenset({("circle", "green"), ("triangle", "yellow"), ("star", "purple")})
"""(shape, colour) pairs that occur in the split `heldout` only; every scene of it has one."""

OBJECT_VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "fill": FILLS,
    "material": MATERIALS,
    "pose": POSES,
}
SLOTS = ("a", "b")
"""Slot a is the only object or the left or top one of a pair, slot b the right or bottom one."""
LAYOUTS = PLACES + tuple("+".join(pair) for pair in PAIRS)
ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
    "layout": LAYOUTS,
    "background": BACKGROUNDS,
    "style": STYLES,
    **{f"{slot}_{name}": values for slot in SLOTS for name, values in OBJECT_VALUES.items()},
}
"""Every attribute that can be read from a picture, with its values in the order of their indices."""


def _check(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(values)}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to 2**32 - 1")


@dataclass(frozen=True)
class SceneObject:
    """One object. A circle is always upright, as its pose cannot be seen."""

    shape: str
    colour: str
    size: str
    fill: str
    material: str
    pose: str
    place: str
    seed: int
    """Decides offset, exact angle and size, hue and where the stone's surface is cut."""

    def __post_init__(self) -> None:
        for name, values in OBJECT_VALUES.items():
            _check(f"object's {name}", getattr(self, name), values)
        _check("object's place", self.place, PLACES)
        _check_seed(self.seed)
        if self.shape == "circle" and self.pose != "upright":
            raise ValueError("a circle must have the pose 'upright': its tilt would not be visible")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SceneObject":
        """The inverse of `to_dict`; ValueError where a value is unknown, TypeError for a missing or strange key."""
        return cls(**values)


@dataclass(frozen=True)
class Scene:
    """One object anywhere, or two at left and right or at top and bottom, in that order."""

    objects: tuple[SceneObject, ...]
    background: str
    style: str
    seed: int
    """Decides the crop of the background and the lighting."""

    def __post_init__(self) -> None:
        _check("background", self.background, BACKGROUNDS)
        _check("style", self.style, STYLES)
        _check_seed(self.seed)
        places = tuple(item.place for item in self.objects)
        if len(places) != 1 and places not in PAIRS:
            raise ValueError(f"objects stand at {places}; expected one object, or two at one of {PAIRS} in that order")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "objects": [item.to_dict() for item in self.objects]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scene":
        """The inverse of `to_dict`; ValueError where a value is unknown, TypeError for a missing or strange key."""
        objects = tuple(SceneObject.from_dict(item) for item in values["objects"])
        return cls(**{**values, "objects": objects})


def has_heldout_pair(scene: Scene) -> bool:
    """Whether an object's (shape, colour) is kept for the split `heldout`."""
    return any((item.shape, item.colour) in HELDOUT_PAIRS for item in scene.objects)


def attribute_targets(scene: Scene) -> dict[str, int]:
    """Index into ATTRIBUTE_VALUES of each attribute.

    -1 stands for what is not there: a circle's pose, and all of slot b where there is one object.
    """
    targets = {
        "layout": LAYOUTS.index("+".join(item.place for item in scene.objects)),
        "background": BACKGROUNDS.index(scene.background),
        "style": STYLES.index(scene.style),
    }
    for number, slot in enumerate(SLOTS):
        item = scene.objects[number] if number < len(scene.objects) else None
        for name, values in OBJECT_VALUES.items():
            absent = item is None or (name == "pose" and item.shape == "circle")
            targets[f"{slot}_{name}"] = -1 if absent else values.index(getattr(item, name))
    return targets
