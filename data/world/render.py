"""Pictures and masks of scenes: signed distances, anti-aliased by pixel coverage, RGB, of 64x64 or another canvas."""

import colorsys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data.world.description import Scene, SceneObject
from data.world.textures import FloatArray, texture
from models.shapes import Size

SIDE = 64
"""Height and width of a square picture in pixels."""

SQUARE: Size = (SIDE, SIDE)
CANVASES: dict[str, Size] = {"square": SQUARE, "wide": (48, 80), "tall": (80, 48)}
"""The canvases on which scenes are shown; their areas are about the square's."""

# Centres and offsets on the square; on other canvases they are the same shares of the sides.
_CENTRES = {
    "center": (32.0, 32.0),
    "left": (17.0, 32.0),
    "right": (47.0, 32.0),
    "top": (32.0, 17.0),
    "bottom": (32.0, 47.0),
}
_OFFSETS = {"center": (3.0, 3.0), "left": (1.5, 4.0), "right": (1.5, 4.0), "top": (4.0, 1.5), "bottom": (4.0, 1.5)}
_RADII = {"small": 9.5, "large": 13.0}
_REACH = 1.6
"""How far from its centre an object of radius 1 can reach, when its size is drawn the largest."""
_HSV = {
    "red": (0.0, 0.88, 0.86),
    "yellow": (0.14, 0.92, 0.97),
    "green": (0.36, 0.82, 0.62),
    "blue": (0.61, 0.85, 0.90),
    "purple": (0.80, 0.72, 0.70),
    "white": (0.0, 0.0, 0.97),
}
_STONE_GREYNESS = 0.2
"""Share of grey in a stone's colour: it tells stone from plain where the texture is blurred."""
_STRIPE_PERIOD = 7.0
_PLAIN = {"grey": (0.50, 0.50, 0.50), "teal": (0.18, 0.58, 0.58)}
_GRADIENTS = {
    "sunset": ((0.30, 0.20, 0.46), (0.97, 0.58, 0.34)),
    "sky": ((0.36, 0.60, 0.92), (0.86, 0.93, 0.98)),
}
_STYLES = {
    # matrix (from row colour to column colour), then what is added
    "natural": (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0)),
    "night": (((0.44, 0.0, 0.05), (0.0, 0.46, 0.06), (0.0, 0.0, 0.56)), (0.01, 0.02, 0.09)),
    "faded": (((0.40, 0.06, 0.06), (0.10, 0.44, 0.10), (0.03, 0.03, 0.37)), (0.45, 0.44, 0.40)),
}


@cache
def _grid(size: Size) -> tuple[FloatArray, FloatArray]:
    """Coordinates x and y of the pixels' centres, [H, W] each, in pixels from the top left corner."""
    y, x = (np.arange(length, dtype=np.float32) + np.float32(0.5) for length in size)
    return np.tile(x, (size[0], 1)), np.tile(y[:, None], (1, size[1]))


def _spread(number: float) -> float:
    """A number in [0, 1) taken to [-1, 1)."""
    return 2 * number - 1


class _Placed:
    """One object with its nuisance drawn from its seed: where it is, what it covers and its surface."""

    def __init__(self, item: SceneObject, size: Size):
        self.item, self.size = item, size
        # The order of these draws is the world's definition: a change of it changes all pictures.
        draws = np.random.default_rng(item.seed).random(9).tolist()
        centre, offset = _CENTRES[item.place], _OFFSETS[item.place]
        height, width = (length / SIDE for length in size)
        self.centre = (
            width * (centre[0] + offset[0] * _spread(draws[0])),
            height * (centre[1] + offset[1] * _spread(draws[1])),
        )
        degrees = 32.5 + 7.5 * _spread(draws[2]) if item.pose == "tilted" else 5 * _spread(draws[2])
        self.angle = np.deg2rad(degrees)  # clockwise on the screen, as y points down
        # Two objects must have room along the shorter side.
        self.radius = min(height, width) ** 0.5 * _RADII[item.size] * (1 + 0.05 * _spread(draws[3]))
        self.tint = (0.015 * _spread(draws[4]), 0.06 * _spread(draws[5]), 0.05 * _spread(draws[6]))
        self.stone_crop = (draws[7], draws[8])
        self.x, self.y = self._own_frame()
        self.distance = self._distance()
        self.coverage: FloatArray = np.clip(0.5 - self.distance, 0, 1)
        """[H, W] in [0, 1]: the share of each pixel that the object covers."""

    def _own_frame(self) -> tuple[FloatArray, FloatArray]:
        x, y = _grid(self.size)
        x, y = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return cos * x + sin * y, cos * y - sin * x

    def _distance(self) -> FloatArray:
        """Signed distance to the outline in pixels, negative inside; sizes chosen for areas of the same order."""
        x, y, radius = self.x, self.y, self.radius
        if self.item.shape == "circle":
            return np.sqrt(x * x + y * y) - radius
        if self.item.shape == "square":
            return np.maximum(np.abs(x), np.abs(y)) - 0.90 * radius
        if self.item.shape == "triangle":
            apex = 1.28 * radius
            y = y - 0.25 * apex  # centre of the bounding box, not of gravity
            return np.maximum(y, np.float32(np.sqrt(0.75)) * np.abs(x) - 0.5 * y) - 0.5 * apex
        return _star_distance(x, y, 1.24 * radius)

    def surface(self) -> FloatArray:
        """[H, W, 3]: colour of the object wherever it might be seen, with a dark rim along its outline."""
        hue, saturation, value = _HSV[self.item.colour]
        hue, saturation = (hue + self.tint[0]) % 1.0, min(1.0, saturation * (1 + self.tint[1]))
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1.0, value * (1 + self.tint[2]))), np.float32)
        if self.item.material == "stone":
            colour += _STONE_GREYNESS * (colour.mean() - colour)
        shade: FloatArray = 1 - 0.45 * np.clip(self.distance + 1.8, 0, 1)
        if self.item.fill == "striped":
            phase = np.abs((self.x / _STRIPE_PERIOD) % 1 - 0.5)  # 0.5 in the middle of a light stripe, 0 of a dark one
            light = np.clip((phase - 0.25) * _STRIPE_PERIOD + 0.5, 0, 1)
            shade = shade * (0.45 + 0.55 * light)
        if self.item.material == "stone":
            shade = shade * self._stone()
        return shade[:, :, None] * colour

    def _stone(self) -> FloatArray:
        """[H, W]: gravel's luminance, which moves with the object."""
        gravel, longest = texture("stone")[:, :, 0], max(self.size)
        room = min(gravel.shape) - 2 * longest
        left = int(self.stone_crop[0] * room) + longest - round(self.centre[0])
        top = int(self.stone_crop[1] * room) + longest - round(self.centre[1])
        return gravel[top : top + self.size[0], left : left + self.size[1]]


def _star_distance(x: FloatArray, y: FloatArray, outer: float) -> FloatArray:
    """Five-pointed star whose inner corners lie at half of its outer radius: one edge, folded ten times."""
    turn = 2 * np.pi / 5
    angle = np.arctan2(x, -y)  # from the upper point
    folded = np.abs((angle + turn / 2) % turn - turn / 2)
    radius = np.sqrt(x * x + y * y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    inner = 0.5 * outer
    edge = np.array([inner * np.cos(turn / 2) - outer, inner * np.sin(turn / 2)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return ((along - outer) * normal[0] + across * normal[1]).astype(np.float32)


def _background(scene: Scene, draws: list[float], size: Size) -> FloatArray:
    """[H, W, 3] in [0, 1], before lighting."""
    if scene.background in _PLAIN:
        return np.broadcast_to(np.array(_PLAIN[scene.background], np.float32), (*size, 3))
    if scene.background in _GRADIENTS:
        top, bottom = (np.array(colour, np.float32) for colour in _GRADIENTS[scene.background])
        share = np.clip(_grid(size)[1] / size[0] + 0.15 * _spread(draws[0]), 0, 1)[:, :, None]
        return top + share * (bottom - top)
    image = texture(scene.background)
    (height, width), (rows, columns) = size, image.shape[:2]
    upper, left = int(draws[0] * (rows - height + 1)), int(draws[1] * (columns - width + 1))
    crop = image[upper : upper + height, left : left + width]
    return crop[:, ::-1] if draws[2] < 0.5 else crop


def _lighting(draws: list[float], size: Size) -> FloatArray:
    """[H, W, 1]: factor of the light, a plane with a random direction."""
    x, y = _grid(size)
    direction = 2 * np.pi * draws[3]
    slope = np.float32(0.12 * draws[4] / (SIDE / 2))
    plane = (x - size[1] / 2) * np.float32(np.cos(direction)) + (y - size[0] / 2) * np.float32(np.sin(direction))
    return (np.float32(1 + 0.06 * _spread(draws[5])) + slope * plane)[:, :, None]


def render(scene: Scene, size: Size = SQUARE) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3]: a pure function of the description and the canvas."""
    draws = np.random.default_rng(scene.seed).random(6).tolist()
    picture = _background(scene, draws, size)
    for item in scene.objects:
        placed = _Placed(item, size)
        picture = picture + placed.coverage[:, :, None] * (placed.surface() - picture)
    picture = np.clip(picture * _lighting(draws, size), 0, 1)
    matrix, added = (np.array(values, np.float32) for values in _STYLES[scene.style])
    picture = picture.reshape(-1, 3) @ matrix + added
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(*size, 3)


def object_coverage(item: SceneObject, size: Size = SQUARE) -> FloatArray:
    """[H, W] in [0, 1]: the share of each pixel that the object covers, wherever others stand."""
    return _Placed(item, size).coverage


def place_mask(place: str, size: Size = SQUARE) -> NDArray[np.bool_]:
    """Mask of the pixels that objects at `place` can cover, whatever their shape, size and seed, bool [H, W]."""
    reach = _REACH * _RADII["large"]
    near = [
        np.abs(grid * SIDE / length - centre) <= offset + reach
        for grid, length, centre, offset in zip(_grid(size), size[::-1], _CENTRES[place], _OFFSETS[place], strict=True)
    ]
    return near[0] & near[1]


def object_mask(scene: Scene, number: int) -> NDArray[np.bool_]:
    """Mask of the pixels of the square that show mostly object `number`, bool [64, 64].

    Raises:
        IndexError: the scene has fewer objects.
    """
    visible = object_coverage(scene.objects[number])
    for later in scene.objects[number + 1 :]:  # drawn on top
        visible = visible * (1 - object_coverage(later))
    return visible > 0.5
