"""Captions of scenes: a short one, and a long one that says every attribute with one fixed word in one fixed order.

So the captions before and after an edit differ in the edited words alone.
"""

from collections.abc import Collection

from data.world.description import Scene, SceneObject

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
