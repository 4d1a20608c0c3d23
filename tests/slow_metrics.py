"""PIE-Bench's measures once more: slow, in float64, picture by picture, from the same saved weights.

Nothing is taken from `eval`. Networks are written out over their state dicts; only CLIP's encoders are transformers'.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import erf
from skimage.metrics import structural_similarity
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTModel,
)

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]
"""[H, W, 3]."""

MINIATURE_CLIP = Path(__file__).resolve().parents[1] / "models/miniature/clip"

# Modules in torchvision's order. Convolutions: (in, out, kernel, stride, padding). Fires: (in, few, out of each half).
# A star: the features before it count.
CLASSIFIERS: dict[str, list[Any]] = {
    "alex": [
        *((3, 64, 11, 4, 2), "relu*", "pool", (64, 192, 5, 1, 2), "relu*", "pool", (192, 384, 3, 1, 1), "relu*"),
        *((384, 256, 3, 1, 1), "relu*", (256, 256, 3, 1, 1), "relu*"),
    ],
    "vgg": [
        *((3, 64, 3, 1, 1), "relu", (64, 64, 3, 1, 1), "relu*", "half"),
        *((64, 128, 3, 1, 1), "relu", (128, 128, 3, 1, 1), "relu*", "half"),
        *((128, 256, 3, 1, 1), "relu", (256, 256, 3, 1, 1), "relu", (256, 256, 3, 1, 1), "relu*", "half"),
        *((256, 512, 3, 1, 1), "relu", (512, 512, 3, 1, 1), "relu", (512, 512, 3, 1, 1), "relu*", "half"),
        *((512, 512, 3, 1, 1), "relu", (512, 512, 3, 1, 1), "relu", (512, 512, 3, 1, 1), "relu*"),
    ],
    "squeeze": [
        *((3, 64, 3, 2, 0), "relu*", "ceil", (64, 16, 64), (128, 16, 64), "*", "ceil"),
        *((128, 32, 128), (256, 32, 128), "*", "ceil"),
        *((256, 48, 192), "*", (384, 48, 192), "*", (384, 64, 256), "*", (512, 64, 256), "*"),
    ],
}


@dataclass(frozen=True)
class SlowModels:
    """Where the saved networks lie: a classifier of LPIPS (squeeze), a ViTModel or CLIPModel, a CLIPModel."""

    lpips: Path
    structure: Path
    clip: Path

    @cached_property
    def classifier(self) -> dict[str, Tensor]:
        return torch.load(self.lpips)

    @cached_property
    def text_and_pictures(self) -> tuple[CLIPModel, CLIPTokenizer]:
        return CLIPModel.from_pretrained(self.clip, dtype=torch.float64), CLIPTokenizer.from_pretrained(self.clip)


def save_random_networks(folder: Path, seed: int = 4) -> SlowModels:
    """A random SqueezeNet 1.1, ViT and CLIP, the last with the miniature's words and OpenAI's normalisation.

    With the default seed most pictures and texts are similar; scores of those that are not are 0 and would test little.
    """
    tokenizer = CLIPTokenizer.from_pretrained(MINIATURE_CLIP)
    size = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 48}
    vision = {**size, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        vit = ViTModel(ViTConfig(**size, image_size=224, patch_size=32), add_pooling_layer=False)
        for model in (clip, vit):
            for weight in model.parameters():
                weight.data += 0.3 * torch.randn_like(weight)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "clip")
    vit.save_pretrained(folder / "vit")
    return SlowModels(save_random_classifier("squeeze", folder / "squeeze.pth", seed), folder / "vit", folder / "clip")


def save_random_classifier(net: str, path: Path, seed: int = 0) -> Path:
    """Random weights under the names of torchvision's state dict, its last layers included; returns `path`."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}

    def convolution(name: str, channels: int, out: int, kernel: int) -> None:
        scale = math.sqrt(2 / (channels * kernel * kernel))
        weights[f"{name}.weight"] = scale * torch.randn(out, channels, kernel, kernel, generator=draw)
        weights[f"{name}.bias"] = 0.1 * torch.randn(out, generator=draw)

    for number, module in enumerate(module for module in CLASSIFIERS[net] if module != "*"):
        if isinstance(module, tuple) and len(module) == 5:
            convolution(f"features.{number}", *module[:3])
        elif isinstance(module, tuple):
            channels, few, half = module
            convolution(f"features.{number}.squeeze", channels, few, 1)
            convolution(f"features.{number}.expand1x1", few, half, 1)
            convolution(f"features.{number}.expand3x3", few, half, 3)
    weights["classifier.1.weight"] = torch.randn(7, 5, generator=draw)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    return path


def slow_measures(
    models: SlowModels,
    source: Picture,
    edit: Picture,
    mask: NDArray[np.bool_],
    source_prompt: str,
    target_prompt: str,
) -> dict[str, dict[str, float]]:
    """form -> measure -> value of one edit; `mask` [H, W] as annotated."""
    shared = {
        "clip_whole": slow_clip_score(models, edit, target_prompt),
        "clip_source": slow_clip_score(models, source, source_prompt),
    }
    return {
        "published": _published(models, source, edit, mask, target_prompt) | shared,
        "corrected": _corrected(models, source, edit, mask, target_prompt) | shared,
    }


def _published(
    models: SlowModels, source: Picture, edit: Picture, mask: NDArray[np.bool_], target_prompt: str
) -> dict[str, float]:
    height, width = mask.shape
    edited = np.array(
        [[mask[y, x] or y in (0, height - 1) or x in (0, width - 1) for x in range(width)] for y in range(height)]
    )
    background = 1.0 - edited[:, :, None]
    a, b = source / 255 * background, edit / 255 * background
    found = dict.fromkeys(("psnr", "mse", "ssim", "lpips"), math.nan)
    if background.sum() > 0:
        error = float(((a - b) ** 2).sum() / a.size)
        found = {"mse": error, "psnr": _decibels(error), "ssim": float(slow_ssim_map(a, b)[5:-5, 5:-5].mean())}
        found["lpips"] = _lpips_layers(models, a, b).mean
    found["clip_edited"] = slow_clip_score(models, edit * edited[:, :, None].astype(np.uint8), target_prompt)
    found["structure"] = _structure_distance(models, source, edit, published=True)
    return found


def _corrected(
    models: SlowModels, source: Picture, edit: Picture, mask: NDArray[np.bool_], target_prompt: str
) -> dict[str, float]:
    a, b = source / 255, np.where(mask[:, :, None], source, edit) / 255
    inside = mask.copy()  # of the frame's outermost five pixels no window has its centre there
    inside[:5] = inside[-5:] = inside[:, :5] = inside[:, -5:] = True
    found = dict.fromkeys(("psnr", "mse", "ssim", "lpips", "clip_edited"), math.nan)
    if not mask.all():
        error = float(np.mean([(x - y) ** 2 for x, y in zip(a[~mask], b[~mask], strict=True)]))
        found |= {"mse": error, "psnr": _decibels(error)}
        found["lpips"] = float(_lpips_layers(models, a, b).map[~mask].mean())
    if not inside.all():
        found["ssim"] = float(slow_ssim_map(a, b)[~inside].mean())
    if mask.any():
        found["clip_edited"] = slow_clip_score(models, _square_around(edit, mask), target_prompt)
    found["structure"] = _structure_distance(models, source, edit, published=False)
    return found


def _decibels(error: float) -> float:
    return 100.0 if error == 0 else 10 * math.log10(1 / error)


def _square_around(picture: Picture, mask: NDArray[np.bool_]) -> Picture:
    """The smallest square with the mask's bounding box in its middle, or as near to it as the frame allows."""
    ys, xs = np.nonzero(mask)
    side = min(max(ys.max() - ys.min(), xs.max() - xs.min()) + 1, *mask.shape)

    def start(places: NDArray[np.int64], length: int) -> int:
        middle = places.min() + places.max() + 1
        return min(range(length - side + 1), key=lambda first: (abs(2 * first + side - middle), first))

    top, left = start(ys, mask.shape[0]), start(xs, mask.shape[1])
    return picture[top : top + side, left : left + side]


def slow_ssim_map(a: Floats, b: Floats) -> Floats:
    """SSIM of pictures [H, W, C] in [0, 1] at every pixel and channel."""
    return structural_similarity(
        a,
        b,
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]


@dataclass(frozen=True)
class LpipsLayers:
    """LPIPS: the sum of the layers' means, and of their maps [H, W] at the picture's size."""

    mean: float
    map: Floats


def _lpips_layers(models: SlowModels, a: Floats, b: Floats) -> LpipsLayers:
    """Of pictures [H, W, 3] in [0, 1] with the squeeze net."""
    return slow_lpips_map("squeeze", models.classifier, *(x.transpose(2, 0, 1) * 2 - 1 for x in (a, b)))


def slow_lpips_map(net: str, weights: dict[str, Tensor], a: NDArray[Any], b: NDArray[Any]) -> LpipsLayers:
    """Of images [3, H, W] in [-1, 1]."""
    packed = resources.files("torchmetrics") / f"functional/image/lpips_models/{net}.pth"
    with packed.open("rb") as file:
        heads = torch.load(file, map_location="cpu")
    pair = [_classifier_features(net, weights, x.astype(np.float64)) for x in (a, b)]
    mean, places = 0.0, np.zeros(a.shape[1:])
    for number, (mine, other) in enumerate(zip(*pair, strict=True)):
        head = heads[f"lin{number}.model.1.weight"].flatten().double().numpy()
        layer = np.zeros(mine.shape[1:])
        for y, x in np.ndindex(layer.shape):
            u, v = (values[:, y, x] / math.sqrt(values[:, y, x] @ values[:, y, x] + 1e-8) for values in (mine, other))
            layer[y, x] = head @ (u - v) ** 2
        mean += layer.mean()
        rows, columns = (_linear(old, new) for old, new in zip(layer.shape, places.shape, strict=True))
        places += rows @ layer @ columns.T
    return LpipsLayers(float(mean), places)


def _classifier_features(net: str, weights: dict[str, Tensor], image: Floats) -> list[Floats]:
    values = (image - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[
        :, None, None
    ]

    def convolution(name: str, given: Floats, stride: int = 1, padding: int = 0) -> Floats:
        weight, bias = (weights[f"{name}.{part}"].double() for part in ("weight", "bias"))
        return torch.conv2d(torch.from_numpy(given)[None], weight, bias, stride, padding)[0].numpy()

    found, number = [], -1
    for module in CLASSIFIERS[net]:
        number += module != "*"
        if isinstance(module, tuple) and len(module) == 5:
            values = convolution(f"features.{number}", values, *module[3:])
        elif isinstance(module, tuple):
            few = np.maximum(convolution(f"features.{number}.squeeze", values), 0)
            halves = [convolution(f"features.{number}.expand{k}x{k}", few, padding=k // 2) for k in (1, 3)]
            values = np.maximum(np.concatenate(halves), 0)
        elif module.startswith("relu"):
            values = np.maximum(values, 0)
        elif module != "*":
            values = _pooled(values, {"pool": 3, "ceil": 3, "half": 2}[module], ceil=module == "ceil")
        if isinstance(module, str) and module.endswith("*"):
            found.append(values)
    return found


def _pooled(values: Floats, kernel: int, ceil: bool) -> Floats:
    """Maxima of windows that start at every second position; a last incomplete one counts if `ceil`."""

    def starts(length: int) -> list[int]:
        last = length - (1 if ceil else kernel)
        return [first for first in range(0, last + 1, 2) if not ceil or first + kernel - 2 < length]

    rows, columns = (starts(length) for length in values.shape[1:])
    return np.array([[values[:, y : y + kernel, x : x + kernel].max((1, 2)) for x in columns] for y in rows]).transpose(
        2, 0, 1
    )


def _linear(old: int, new: int) -> Floats:
    """Weights [new, old] of linear interpolation between pixel centres."""
    weights = np.zeros((new, old))
    for position in range(new):
        place = min(max((position + 0.5) * old / new - 0.5, 0), old - 1)
        below = min(int(place), old - 2) if old > 1 else 0
        share = place - below
        weights[position, below] = 1 - share
        if old > 1:
            weights[position, below + 1] = share
    return weights


def _structure_distance(models: SlowModels, source: Picture, edit: Picture, published: bool) -> float:
    a, b = (slow_self_similarity(models.structure, picture, published) for picture in (source, edit))
    return float(np.mean((a - b) ** 2))


def slow_self_similarity(folder: Path, picture: Picture, published: bool) -> Floats:
    """Cosines [N, N] between the last layer's keys."""
    if AutoConfig.from_pretrained(folder).model_type == "vit":
        keys = _vit_keys(folder, _dino_pixels(picture, published))
    else:
        keys = _clip_keys(folder, picture)
    count = len(keys)
    found = np.zeros((count, count))
    for i, j in np.ndindex(count, count):
        found[i, j] = keys[i] @ keys[j] / (np.linalg.norm(keys[i]) * np.linalg.norm(keys[j]))
    return found


def _dino_pixels(picture: Picture, published: bool) -> Floats:
    """[3, h, w]; the shorter side is 224."""
    height, width = picture.shape[:2]
    size = [int(224 * length / min(height, width)) for length in (height, width)]
    channels = []
    for channel, mean, std in zip(
        picture.transpose(2, 0, 1).astype(np.float64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True
    ):
        if published:
            values = _linear(height, size[0]) @ channel @ _linear(width, size[1]).T
        else:
            image = Image.fromarray(channel.astype(np.float32), mode="F")
            values = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float64) / 255
        channels.append((values - mean) / std)
    return np.array(channels)


def _vit_keys(folder: Path, pixels: Floats) -> Floats:
    """Keys [N, D] of all tokens, heads side by side."""
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    config = model.config

    def norm(values: Floats, name: str) -> Floats:
        centred = values - values.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(values: Floats, name: str) -> Floats:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    side = config.patch_size
    patches = [
        np.einsum("cyx,ocyx->o", pixels[:, y : y + side, x : x + side], weights[f"{_PATCHES}.weight"])
        for y in range(0, pixels.shape[1] - side + 1, side)
        for x in range(0, pixels.shape[2] - side + 1, side)
    ]
    shape = pixels.shape[1] // side, pixels.shape[2] // side
    tokens = np.concatenate([weights["embeddings.cls_token"][0], np.array(patches) + weights[f"{_PATCHES}.bias"]])
    tokens = tokens + _positions(weights["embeddings.position_embeddings"][0], shape)
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        normed = norm(tokens, f"{layer}.layernorm_before")
        query, key, value = (linear(normed, f"{layer}.attention.{part}_proj") for part in "qkv")
        if number == config.num_hidden_layers - 1:
            return key
        heads = []
        for part in np.split(np.arange(config.hidden_size), config.num_attention_heads):
            scores = query[:, part] @ key[:, part].T / math.sqrt(len(part))
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ value[:, part])
        tokens = tokens + linear(np.concatenate(heads, 1), f"{layer}.attention.o_proj")
        hidden = linear(norm(tokens, f"{layer}.layernorm_after"), f"{layer}.mlp.fc1")
        tokens = tokens + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"{layer}.mlp.fc2")
    raise AssertionError("a ViT without layers")


_PATCHES = "embeddings.patch_embeddings.projection"


def _positions(learned: Floats, shape: tuple[int, int]) -> Floats:
    """Position embeddings [1 + h * w, D], interpolated if they were learned at another size."""
    side = math.isqrt(len(learned) - 1)
    if shape == (side, side):
        return learned
    grid = torch.from_numpy(learned[1:].reshape(side, side, -1).transpose(2, 0, 1))[None]
    grid = torch.nn.functional.interpolate(grid, shape, mode="bicubic", align_corners=False)
    return np.concatenate([learned[:1], grid[0].flatten(1).T.numpy()])


@torch.no_grad()
def _clip_keys(folder: Path, picture: Picture) -> Floats:
    vision = CLIPModel.from_pretrained(folder, dtype=torch.float64).vision_model
    image = torch.from_numpy(picture.astype(np.float64).transpose(2, 0, 1))[None] / 127.5 - 1
    if (folder / "preprocessor_config.json").exists():
        raise NotImplementedError("a CLIP with an image processor")
    hidden = vision(pixel_values=image, output_hidden_states=True).hidden_states[-2]
    layer = vision.encoder.layers[-1]
    return layer.self_attn.k_proj(layer.layer_norm1(hidden))[0].numpy()


@torch.no_grad()
def slow_clip_score(models: SlowModels, picture: Picture, text: str) -> float:
    """max(100 cos, 0), with transformers' own image processor."""
    model, tokenizer = models.text_and_pictures
    side = model.config.vision_config.image_size
    if (models.clip / "preprocessor_config.json").exists():
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        processor = CLIPImageProcessorPil.from_pretrained(models.clip, **sizes)
        pixels = np.array(processor(images=Image.fromarray(picture))["pixel_values"], np.float64)
    else:  # as the miniature takes them
        resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized, np.float64).transpose(2, 0, 1)[None] / 127.5 - 1
    shown = model.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output[0].numpy()
    ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
    said = model.get_text_features(input_ids=ids).pooler_output[0].numpy()
    return max(100 * float(shown @ said / math.sqrt((shown @ shown) * (said @ said))), 0.0)
