"""PIE-Bench's metrics in batches beside one case after another with torchmetrics."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.regression import mean_squared_error
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTModel

from data.jobs.device import choose_device
from eval.metrics.clip import ClipSimilarity
from eval.metrics.config import MetricConfig
from eval.metrics.lpips import classifier_features
from eval.metrics.networks import MetricModels, load_metric_models
from eval.pie.metrics import FORMS, PieMetrics
from scripts.bench.random_backbones import CAPTION
from scripts.bench.results import result
from scripts.miniature import parts
from train.run.clock import peak_memory

LARGEST_DIFFERENCE = 1e-5
"""Between two values of a measure, as a share of them."""

_PROMPTS = (CAPTION, CAPTION.replace("red", "blue"))

PictureArray = NDArray[np.uint8]
"""[H, W, 3]."""

Mask = NDArray[np.bool_]
"""[H, W]."""

FormValues = dict[str, dict[str, float]]
"""form -> measure -> value."""


@dataclass(frozen=True)
class EvalSize:
    """Sizes of pictures and networks.

    Args:
        side: Side of the pictures in pixels.
        vit: Sizes of the structure's ViT: width, layers, heads, patch.
        vision: Sizes of the CLIP's vision encoder: width, layers, heads.
        text: Sizes of its text encoder.
        patch: Side of a patch of the CLIP's pictures.
        input: Side of these pictures.
        projection: Width of the embeddings.
    """

    side: int
    vit: tuple[int, int, int, int]
    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    patch: int
    input: int
    projection: int


SIZES = {
    "tiny": EvalSize(64, (48, 2, 2, 32), (48, 2, 2), (32, 2, 2), 16, 64, 32),
    "real": EvalSize(512, (768, 12, 12, 8), (1024, 24, 16), (768, 12, 12), 14, 224, 768),
}
"""`real` are DINO ViT-B/8 and CLIP ViT-L/14; LPIPS' SqueezeNet has one size only."""


@dataclass(frozen=True)
class Cases:
    """Sources uint8 [N, 3, H, W], masks bool [N, 1, H, W], and the edits of each editor."""

    sources: Tensor
    masks: Tensor
    edits: tuple[Tensor, ...]


@dataclass
class Stopwatch:
    """Seconds of every round of each side, on a clock of the machine's."""

    read: Callable[[], float]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def taking(self, side: str) -> Iterator[None]:
        """Around a side's work of a round, which ends with values on the CPU."""
        start = self.read()
        yield
        self.seconds.setdefault(side, []).append(self.read() - start)


@torch.no_grad()
def measure_metrics(
    size: Literal["tiny", "real"],
    cases: int,
    editors: int,
    batch: int,
    rounds: int,
    device: Literal["auto", "cpu", "cuda"],
) -> list[dict[str, Any]]:
    """Measure both ways.

    Raises:
        ValueError: A value differs.
    """
    where = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        models = random_models(Path(folder), SIZES[size], where)
    data = random_cases(cases, editors, SIZES[size].side)
    one_by_one = OneByOne(models)
    wall, processor = Stopwatch(time.perf_counter), Stopwatch(time.process_time)
    for round_number in range(rounds + 1):  # the first warms up, with one edit
        part = Cases(data.sources[:1], data.masks[:1], (data.edits[0][:1],)) if round_number == 0 else data
        with wall.taking("batches"), processor.taking("batches"):
            found = in_batches(PieMetrics(models), part, batch)
        with wall.taking("one by one"), processor.taking("one by one"):
            expected = one_by_one.all_values(part)
    difference, worst = largest_metric_difference(found, expected)
    rates = {name: cases * editors / statistics.median(times[1:]) for name, times in wall.seconds.items()}
    print(f"{size} on {where.type}, {cases} cases, {editors} editors, batches of {batch}, {rounds} rounds\n")
    print("| metrics | edits/s | processor seconds an edit |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.3f} | {statistics.median(processor.seconds[name][1:]) / cases / editors:.3f} |")
    print(f"\nvalues differ by a share of at most {difference:.2g} ({worst})")
    if difference > LARGEST_DIFFERENCE:
        raise ValueError(f"{worst} differs by a share of {difference:.2g}, expected at most {LARGEST_DIFFERENCE}")
    return [
        result("eval_vs_one_by_one", rates["batches"], "edits/s", rates["one by one"]),
        {"name": "eval_difference", "value": difference, "unit": "share of a value"},
        result("eval_peak_memory", peak_memory(where) / 1e9, "GB", None),
    ]


def in_batches(metrics: PieMetrics, data: Cases, batch: int) -> list[FormValues]:
    """Values of all edits, case by case and in them editor by editor."""
    found: list[FormValues] = []
    for start in range(0, len(data.sources), batch):
        rows = slice(start, start + batch)
        prompts = ([text] * len(data.sources[rows]) for text in _PROMPTS)
        sources = metrics.sources(data.sources[rows], data.masks[rows], *prompts)
        editors = [metrics.measure(sources, edits[rows]) for edits in data.edits]
        found += [
            {form: {name: values[index].item() for name, values in of_editor[form].items()} for form in FORMS}
            for index in range(len(sources))
            for of_editor in editors
        ]
    return found


class OneByOne:
    """The measures of one edit at a time, each for itself.

    Args:
        models: The networks.
    """

    def __init__(self, models: MetricModels) -> None:
        assert models.lpips is not None and models.clip is not None
        self.lpips, self.clip, self.structures = models.lpips, models.clip, models.structures
        self.device = models.device
        side = self.clip.pixels.side
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)

    def all_values(self, data: Cases) -> list[FormValues]:
        """Values of all edits in the order of `in_batches`."""
        found = []
        for index in range(len(data.sources)):
            source, mask = _array(data.sources[index]), data.masks[index, 0].numpy()
            for edits in data.edits:
                edit = _array(edits[index])
                shared = {
                    "clip_whole": self._clip(edit, _PROMPTS[1]),
                    "clip_source": self._clip(source, _PROMPTS[0]),
                }
                forms = {
                    "published": self._published(source, edit, _with_border(mask)),
                    "corrected": self._corrected(source, edit, mask),
                }
                for form, values in forms.items():
                    values |= shared | {"structure": self._structure(form, source, edit)}
                found.append(forms)
        return found

    def _published(self, source: PictureArray, edit: PictureArray, mask: Mask) -> dict[str, float]:
        """Measures that depend on the form; the mask's border is set."""
        a, b = (self._tensor(picture.astype(np.float32) / 255 * ~mask[:, :, None]) for picture in (source, edit))
        return {
            "mse": mean_squared_error(a, b).item(),
            "psnr": peak_signal_noise_ratio(a, b, data_range=1.0).item(),
            "ssim": _ssim_map(a, b).mean().item(),
            "lpips": self.lpips(a * 2 - 1, b * 2 - 1).item(),
            "clip_edited": self._clip(edit * mask[:, :, None], _PROMPTS[1]),
        }

    def _corrected(self, source: PictureArray, edit: PictureArray, mask: Mask) -> dict[str, float]:
        """Measures that depend on the form, with the mask as annotated."""
        kept = np.where(mask[:, :, None], source, edit)
        a, b = (self._tensor(picture.astype(np.float32) / 255) for picture in (source, kept))
        background = torch.from_numpy(~mask).to(self.device)
        error = (a - b)[..., background].square().mean().item()
        return {
            "mse": error,
            "psnr": 10 * math.log10(1 / error),
            "ssim": _ssim_map(a, b)[..., background[5:-5, 5:-5]].mean().item(),
            "lpips": self.lpips.spatial(a * 2 - 1, b * 2 - 1)[..., background].mean().item(),
            "clip_edited": self._clip(_square(edit, mask), _PROMPTS[1]),
        }

    def _structure(self, form: str, source: PictureArray, edit: PictureArray) -> float:
        a, b = (self._tensor(picture.astype(np.float32) / 127.5 - 1) for picture in (source, edit))
        structure = self.structures[form]
        return functional.mse_loss(structure.similarity(a), structure.similarity(b)).item()

    def _clip(self, picture: PictureArray, text: str) -> float:
        pixels = torch.as_tensor(np.array(self.processor(images=Image.fromarray(picture))["pixel_values"]))
        shown = self.clip.model.get_image_features(pixel_values=pixels.float().to(self.device)).pooler_output
        said = self.clip.embed([text])
        return 100 * functional.cosine_similarity(shown, said).clamp(min=0).item()

    def _tensor(self, picture: NDArray[Any]) -> Tensor:
        """[1, 3, H, W] of [H, W, 3]."""
        return torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))[None].to(self.device)


def _array(picture: Tensor) -> PictureArray:
    return picture.permute(1, 2, 0).numpy()


def _with_border(mask: Mask) -> Mask:
    mask = mask.copy()
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = True
    return mask


def _square(picture: PictureArray, mask: Mask) -> PictureArray:
    """The square around the mask's bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    top, left = (
        np.clip((places[0] + places[-1] + 1 - side) // 2, 0, length - side)
        for places, length in zip((rows, columns), mask.shape, strict=True)
    )
    return picture[top : top + side, left : left + side]


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    _, local = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
    return local[..., 5:-5, 5:-5]


def largest_metric_difference(found: Sequence[FormValues], expected: Sequence[FormValues]) -> tuple[float, str]:
    """The largest share by which two values differ, and of which measure."""
    shares = {
        f"{form} {name}": max(
            abs(mine[form][name] - other[form][name]) / abs(other[form][name])
            for mine, other in zip(found, expected, strict=True)
        )
        for form in FORMS
        for name in expected[0][form]
    }
    worst = max(shares, key=lambda name: shares[name])
    return shares[worst], worst


def random_models(folder: Path, size: EvalSize, device: torch.device) -> MetricModels:
    """Networks of this size with random weights, saved and loaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"features.{name}": values for name, values in classifier_features("squeeze").state_dict().items()}
        torch.save(state, folder / "squeeze.pth")
        width, layers, heads, patch = size.vit
        vit = ViTConfig(**_widths(width, layers, heads), image_size=224, patch_size=patch)
        ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "vit")
        tokenizer = parts.build_tokenizer(list(_PROMPTS))
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        text = {**_widths(*size.text), **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
        vision = {**_widths(*size.vision), "image_size": size.input, "patch_size": size.patch}
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.projection))
        clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": size.input}, crop_size=size.input).save_pretrained(folder / "clip")
    config = MetricConfig(folder / "squeeze.pth", str(folder / "vit"), str(folder / "clip"))
    models = load_metric_models(config, device)
    assert models.clip is not None
    _make_similar(models.clip)
    return models


def _widths(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _make_similar(clip: ClipSimilarity) -> None:
    """Draws the texts' embeddings towards a picture's; random ones may be opposite, and then all scores are 0."""
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8, device=clip.model.device)
    tokens = clip.tokenizer(_PROMPTS[0], return_tensors="pt").to(clip.model.device)
    said = clip.model.text_model(**tokens).pooler_output
    clip.model.text_projection.weight += functional.normalize(clip.embed_pictures(grey)).T @ said / said.norm()


def random_cases(cases: int, editors: int, side: int) -> Cases:
    """Pictures with texture, rectangular masks, edits with more change in the mask than outside."""
    draw = torch.Generator().manual_seed(0)

    def smooth(detail: int) -> Tensor:
        coarse = torch.rand(cases, 3, detail, detail, generator=draw)
        return functional.interpolate(coarse, (side, side), mode="bicubic", antialias=True)

    sources = smooth(16) + 0.2 * (torch.rand(cases, 3, side, side, generator=draw) - 0.5)
    masks = torch.zeros(cases, 1, side, side, dtype=torch.bool)
    for mask in masks:
        top, left, height, width = (torch.randint(side // 8, side // 3, (4,), generator=draw)).tolist()
        mask[:, top : top + height, left : left + width] = True
    edits = [sources + 0.1 * (smooth(16) - 0.5) + masks * (smooth(8) - 0.5) for _ in range(editors)]
    levels = [(255 * images).round().clamp(0, 255).to(torch.uint8) for images in (sources, *edits)]
    return Cases(levels[0], masks, tuple(levels[1:]))
