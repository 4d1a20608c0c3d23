"""Sight for the miniature's LLaVA: its vision tower learns to outline and to name objects, patch by patch.

Contrastive training leaves CLIP's tower unable to tell circles from squares, and captions alone teach that too slowly:
one word of sixty depends on it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from data.world.description import POSES, SHAPES, Scene
from data.world.render import object_mask
from scripts.miniature.parts import SIDE
from train.rng import StepRandom
from train.task import Batch, StepLoss

PATCH = 8
OUTLINE_LAYER, NAME_LAYER = 2, 4
_NOTHING = 0
_NAMES = 1 + len(SHAPES) * len(POSES)
_LEAST = 16
"""A patch with more pixels of objects than these is asked for a name; of two objects for the one of larger number."""


class _Sight(nn.Module):
    """A vision tower with a head for outlines on its lower layer and one for names on its upper layer."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.outline = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PATCH**2))
        self.name = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _NAMES))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of pictures [B, 3, 64, 64]: outlines [B, patches, pixels of a patch], names [B, patches, names]."""
        layers = self.tower(pixel_values=image, output_hidden_states=True).hidden_states
        return self.outline(layers[OUTLINE_LAYER][:, 1:]), self.name(layers[NAME_LAYER][:, 1:])


class SightTask:
    """Cross entropy of every pixel's being an object, and of the shape and pose of what a patch shows."""

    fields: tuple[str, ...] = ("image", "info")
    groups: tuple[str, ...] = ()

    def __init__(self, tower: CLIPVisionModel) -> None:
        self.trainable: nn.Module = _Sight(tower)

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Both cross entropies; the names of patches that show too little of an object do not count."""
        image = batch["image"]
        labels = np.stack([patch_labels(Scene.from_dict(info["extra"]["scene"])) for info in batch["info"]])
        pixels = torch.from_numpy(labels).to(image.device)
        shown, name = (pixels != _NOTHING), pixels.amax(2)
        outlines, names = model(image)
        asked = shown.sum(2) > _LEAST
        name = torch.where(asked, name, -100)
        terms = {
            "outline": F.binary_cross_entropy_with_logits(outlines, shown.float()),
            "name": F.cross_entropy(names.transpose(1, 2), name, ignore_index=-100),
        }
        right = ((names.argmax(2) == name) & asked).sum() / asked.sum()
        return StepLoss(terms, {"named": right.detach()})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Nothing to see."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means


def patch_labels(scene: Scene) -> np.ndarray:
    """Labels of the pixels, int64 [patches, pixels of a patch]: 0 no object, else a number of shape and pose."""
    picture = np.full((SIDE, SIDE), _NOTHING)
    for number, item in enumerate(scene.objects):
        pose = 0 if item.shape == "circle" else POSES.index(item.pose)
        picture[object_mask(scene, number)] = 1 + SHAPES.index(item.shape) * len(POSES) + pose
    rows = picture.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).swapaxes(1, 2)
    return rows.reshape(-1, PATCH**2)
