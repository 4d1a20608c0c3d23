"""Random scenes: uniform over attributes, a third of them with two objects, and the rule for held-out combinations."""

from collections.abc import Sequence

import numpy as np

from data.world.description import (
    BACKGROUNDS,
    OBJECT_VALUES,
    PAIRS,
    PLACES,
    STYLES,
    Scene,
    SceneObject,
    has_heldout_pair,
)

PAIR_SHARE = 1 / 3
STYLE_SHARES = (0.6, 0.2, 0.2)


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    """One of `values`, all equally likely."""
    return values[int(rng.integers(len(values)))]


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for nuisance."""
    return int(rng.integers(2**32))


def draw_object(rng: np.random.Generator, place: str) -> SceneObject:
    """An object at `place`, every attribute and its nuisance at random."""
    values = {name: pick(rng, choices) for name, choices in OBJECT_VALUES.items()}
    if values["shape"] == "circle":
        values["pose"] = "upright"
    return SceneObject(**values, place=place, seed=draw_seed(rng))


def draw_scene(rng: np.random.Generator, heldout: bool = False) -> Scene:
    """A scene with at least one held-out (shape, colour) pair, or by default without any."""
    places = PAIRS[int(rng.integers(len(PAIRS)))] if rng.random() < PAIR_SHARE else (pick(rng, PLACES),)
    background = pick(rng, BACKGROUNDS)
    style = STYLES[int(rng.choice(len(STYLES), p=STYLE_SHARES))]
    seed = draw_seed(rng)
    while True:
        scene = Scene(tuple(draw_object(rng, place) for place in places), background, style, seed)
        if has_heldout_pair(scene) == heldout:
            return scene
