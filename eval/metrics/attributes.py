"""A small network that reads every attribute of a scene from its picture, and the agreement of two readings.

It judges edits: an attribute counts wherever its object is, as slots a and b are the objects' order in the picture and
not the places that a caption names. Trained by `scripts/miniature`; used by evaluation only. As a judge it must have
seen all combinations, held-out ones too: one that never saw a green circle reads another shape.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from data.world.description import ATTRIBUTE_VALUES

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PAIR_START = next(number for number, value in enumerate(ATTRIBUTE_VALUES["layout"]) if "+" in value)
_CIRCLE = ATTRIBUTE_VALUES["a_shape"].index("circle")


@dataclass(frozen=True)
class AttributeReaderConfig:
    """Size of an AttributeReader."""

    widths: tuple[int, ...] = (32, 64, 64, 128, 128, 192)
    """Channels of the convolutions."""
    strides: tuple[int, ...] = (1, 2, 1, 2, 1, 1)
    """Strides of these layers; 2x2 pixels are folded into channels first, so two more halvings turn 64 pixels to 8."""

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.strides):
            raise ValueError(
                f"{len(self.widths)} widths and {len(self.strides)} strides, expected as many of both, at least 1"
            )


class AttributeReader(nn.Module):
    """Convolutions, then a soft map for each slot that finds its object, and one linear head for each attribute.

    An object's heads read the features that its map selects; the scene's heads read those of both maps and the mean.
    """

    def __init__(self, config: AttributeReaderConfig | None = None):
        super().__init__()
        self.config = config or AttributeReaderConfig()
        self.values = dict(ATTRIBUTE_VALUES)
        """Heads with the values that their logits stand for."""
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]  # convolutions at full size would cost more than all others
        channels = 5 * 4  # the picture and two coordinates
        for width, stride in zip(self.config.widths, self.config.strides, strict=True):
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.maps = nn.Conv2d(channels, 2, 1)
        features = {"scene": 3 * channels, "a": channels, "b": channels}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features[_owner(name)], len(values)) for name, values in self.values.items()}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits [B, number of values] by attribute of images [B, 3, 64, 64] in [-1, 1]."""
        grid = self.trunk(torch.cat([image, _coordinates(image)], dim=1)).flatten(2)
        where = self.maps(grid[..., None]).squeeze(-1).softmax(dim=-1)
        slots = grid @ where.transpose(1, 2)
        features = {"a": slots[..., 0], "b": slots[..., 1]}
        features["scene"] = torch.cat([grid.mean(dim=-1), features["a"], features["b"]], dim=1)
        return {name: head(features[_owner(name)]) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, image: Tensor) -> dict[str, Tensor]:
        """Value indices, int64 [B] by attribute, -1 for what is not there (see `attribute_targets`).

        ValueError in training mode, where the batch's statistics would decide.
        """
        if self.training:
            raise ValueError("the reader is in training mode; call reader.eval() before reader.read(...)")
        values = {name: logits.argmax(dim=1) for name, logits in self(image).items()}
        single = values["layout"] < _PAIR_START
        for slot in ("a", "b"):
            values[f"{slot}_pose"] = values[f"{slot}_pose"].masked_fill(values[f"{slot}_shape"] == _CIRCLE, -1)
        return {name: value.masked_fill(single, -1) if _owner(name) == "b" else value for name, value in values.items()}

    def loss(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Sum over the attributes of the mean cross entropy of samples whose target is not -1."""
        total = torch.zeros((), device=next(iter(logits.values())).device)
        for name, scores in logits.items():
            target = targets[name]
            summed = functional.cross_entropy(scores, target, ignore_index=-1, reduction="sum")
            total = total + summed / (target >= 0).sum().clamp(min=1)
        return total

    def save(self, folder: Path) -> None:
        """Writes config.json (sizes and the meaning of each head) and model.safetensors (floats as fp16)."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {**asdict(self.config), "values": self.values}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = self.state_dict().items()
        save_file(
            {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state},
            folder / _WEIGHTS,
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "AttributeReader":
        """A reader in fp32 and evaluation mode. ValueError where it was trained on a world of other values."""
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        values = {name: tuple(choices) for name, choices in config["values"].items()}
        if values != ATTRIBUTE_VALUES:
            raise ValueError(f"{folder} reads other attributes than data.scenes has now; train the reader again")
        reader = cls(AttributeReaderConfig(tuple(config["widths"]), tuple(config["strides"])))
        state = load_file(folder / _WEIGHTS)
        reader.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
        return reader.to(device).eval()


def _owner(name: str) -> str:
    """Owner of an attribute: "a", "b" or "scene"."""
    return name[0] if name[:2] in ("a_", "b_") else "scene"


def attribute_type(name: str) -> str:
    """Subject of an attribute, whichever object has it: "a_shape" -> "shape"."""
    return name if _owner(name) == "scene" else name[2:]


def _coordinates(image: Tensor) -> Tensor:
    """The coordinates x and y in [-1, 1] as [B, 2, H, W]."""
    count, _, height, width = image.shape
    y = torch.linspace(-1, 1, height, device=image.device, dtype=image.dtype)
    x = torch.linspace(-1, 1, width, device=image.device, dtype=image.dtype)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(count, 2, height, width)


def stack_targets(targets: Iterable[Mapping[str, int]]) -> dict[str, Tensor]:
    """Results of `attribute_targets` for B scenes -> int64 [B] by attribute. ValueError where there is none."""
    rows = list(targets)
    if not rows:
        raise ValueError("no targets to stack, expected those of at least one scene")
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.int64) for name in ATTRIBUTE_VALUES}


def matches(read: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float [B] by attribute: 1 where the reading equals the target, 0 where not, NaN where the target is -1."""
    return {name: (read[name] == target).float().masked_fill(target < 0, torch.nan) for name, target in targets.items()}


def agreement(read: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of right readings by type (layout, background, style, shape, colour, size, fill, material, pose).

    Both slots' objects are counted together; targets of -1 are left out; a type without any target is NaN.
    """
    by_type: dict[str, list[Tensor]] = {}
    for name, right in matches(read, targets).items():
        by_type.setdefault(attribute_type(name), []).append(right)
    return {name: cast(float, torch.cat(parts).nanmean().item()) for name, parts in by_type.items()}
