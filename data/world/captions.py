"""Captions of scenes: short, long, and at length in whole sentences; and the attributes that a caption says.

The long caption says every attribute with one fixed word in one fixed order, so the captions before and after an edit
differ in the edited words alone.
"""

import re
from collections.abc import Collection

import numpy as np

from data.world.description import ATTRIBUTE_VALUES, LAYOUTS, OBJECT_VALUES, SLOTS, Scene, SceneObject

SHORT_BACKGROUNDS = {
    "grey": "on grey",
    "teal": "on teal",
    "sunset": "at sunset",
    "sky": "in the sky",
    "brick": "on a brick wall",
    "grass": "on grass",
    "fur": "on fur",
    "space": "in space",
}

_OPENINGS = ("The image features", "The image shows", "In this image there is", "The picture depicts", "We can see")
_PLACES = ("at the {} of the picture", "at the {}", "towards the {}")
_SURFACES = ("is {}", "looks {}", "appears to be {}")
_BACKGROUNDS = ("The background is {}", "Behind it the background is {}", "It is set against a background of {}")
_STYLES = ("and the overall style of the image is {}", "and the style of the image is {}", "rendered in a style of {}")
_FILLERS = (
    "The composition is simple and calm.",
    "It stands out clearly against the rest of the picture.",
    "Nothing else can be seen in the scene.",
    "The scene is well lit and has a clear focus.",
)
_FILLER_SHARE = 0.4


def describe_object(item: SceneObject) -> str:
    """Every attribute but the place: "a small striped stone tilted red star". A circle's pose is not said."""
    pose = () if item.shape == "circle" else (item.pose,)
    return " ".join(("a", item.size, item.fill, item.material, *pose, item.colour, item.shape))


def short_caption(scene: Scene, also: Collection[str] = ()) -> str:
    """Colours, shapes and background: "a red star and a blue circle on a brick wall".

    Args:
        also: what else is said, of size, fill, material, pose, place and style: "a striped red star on a brick wall".
    """
    objects = " and ".join(_short_object(item, also) for item in scene.objects)
    style = f", {scene.style} style" if "style" in also else ""
    return f"{objects} {SHORT_BACKGROUNDS[scene.background]}{style}"


def _short_object(item: SceneObject, also: Collection[str]) -> str:
    said = [name for name in ("size", "fill", "material", "pose") if name in also]
    words = [getattr(item, name) for name in said if not (name == "pose" and item.shape == "circle")]
    place = f" at the {item.place}" if "place" in also else ""
    return " ".join(("a", *words, item.colour, item.shape)) + place


def long_caption(scene: Scene) -> str:
    """Every attribute: "a large solid plain upright red star at the center, brick background, natural style"."""
    objects = " and ".join(f"{describe_object(item)} at the {item.place}" for item in scene.objects)
    return f"{objects}, {scene.background} background, {scene.style} style"


def name_object(scene: Scene, number: int) -> str:
    """A short name that no other object of the scene has: "the star", or "the star at the left" beside another star."""
    item = scene.objects[number]
    same_shape = sum(other.shape == item.shape for other in scene.objects)
    return f"the {item.shape}" if same_shape == 1 else f"the {item.shape} at the {item.place}"


def describe_at_length(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Every attribute in sentences; in one fixed wording, or with `rng` in one of many and with idle words."""

    def choose(wordings: tuple[str, ...]) -> str:
        return wordings[0] if rng is None else wordings[int(rng.integers(len(wordings)))]

    def mention(item: SceneObject) -> str:
        return f"a {item.size} {item.colour} {item.shape} {choose(_PLACES).format(item.place)}"

    sentences = [f"{choose(_OPENINGS)} {' and '.join(mention(item) for item in scene.objects)}."]
    for item in scene.objects:
        name = item.shape if len(scene.objects) == 1 else f"{item.shape} at the {item.place}"
        poses = () if item.shape == "circle" else (item.pose,)
        looks = [item.fill, item.material, *poses]
        sentences.append(f"The {name} {choose(_SURFACES).format(', '.join(looks[:-1]) + ' and ' + looks[-1])}.")
    sentences.append(f"{choose(_BACKGROUNDS).format(scene.background)}, {choose(_STYLES).format(scene.style)}.")
    if rng is not None and rng.random() < _FILLER_SHARE:
        sentences.insert(int(rng.integers(1, len(sentences) + 1)), choose(_FILLERS))
    return " ".join(sentences)


def _one_of(name: str) -> str:
    """Pattern of a named group: any value of an attribute of objects, and the space behind it."""
    return rf"(?:(?P<{name}>{'|'.join(OBJECT_VALUES[name])}) )"


_MENTION = re.compile(
    rf"\ba {_one_of('size')}{_one_of('fill')}?{_one_of('material')}?{_one_of('pose')}?"
    rf"{_one_of('colour')}{_one_of('shape')}(?:at|towards) the (?P<place>\w+)",
    re.IGNORECASE,
)
_SURFACE = re.compile(r"\bthe (?P<shape>\w+)(?: at the (?P<place>\w+))? (?:is|looks|appears to be) (?P<looks>[^.]+)\.")


def read_caption(text: str) -> dict[str, int]:
    """Read what a caption says, long or at length: index into ATTRIBUTE_VALUES of each attribute.

    -1 stands for what is not said or not one of the values; a third object and all that is not about the scene is
    passed over.
    """
    found: dict[str, str] = {}
    mentions = list(_MENTION.finditer(text))[: len(SLOTS)]
    places = [match["place"].lower() for match in mentions]
    layout = "+".join(places)
    if layout in LAYOUTS:
        found["layout"] = layout
    for slot, match in zip(SLOTS, mentions):
        found |= {f"{slot}_{name}": match[name].lower() for name in OBJECT_VALUES if match[name]}
    for match in _SURFACE.finditer(text.lower()):
        owners = [slot for slot, place in zip(SLOTS, places) if match["place"] in (None, place)]
        for name in ("fill", "material", "pose"):
            values = [value for value in OBJECT_VALUES[name] if re.search(rf"\b{value}\b", match["looks"])]
            found |= {f"{slot}_{name}": value for slot in owners[:1] for value in values}
    for name in ("background", "style"):
        choices = "|".join(ATTRIBUTE_VALUES[name])
        said = re.search(rf"\b({choices}) {name}\b|\b{name}(?: of the image)? (?:is|of) ({choices})\b", text.lower())
        if said:
            found[name] = said[1] or said[2]
    return {name: values.index(found[name]) if name in found else -1 for name, values in ATTRIBUTE_VALUES.items()}
