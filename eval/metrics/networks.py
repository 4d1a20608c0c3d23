"""The learned networks of metrics, loaded from folders, files or hub ids; what cannot be had is left out, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, CLIPModel, CLIPVisionModel, ViTModel

from data.jobs.network import unreachable
from eval.metrics.as_published import unlike
from eval.metrics.clip import ClipSimilarity
from eval.metrics.config import PUBLISHED_CLIP, PUBLISHED_DINO, MetricConfig
from eval.metrics.lpips import Lpips, load_lpips, unlike_published
from eval.metrics.structure import DinoPixels, Structure
from models.backbone import freeze
from models.clip import ClipPixels
from models.fingerprints import clip_fingerprint, fingerprint, weights_digest

FURTHER_WORDS = "whole pictures, the edited part and the direction of CLIP's embeddings are measured too"

TODAY_WORDS = "SSIM and structure distance as the official code gives them with today's libraries, not those of 2023"


@dataclass(frozen=True)
class MetricModels:
    """Networks that PIE-Bench's metrics need.

    Args:
        lpips: LPIPS, or None to leave it out.
        structures: structures by form, "published" and "corrected"; empty to leave the structure distance out.
        clip: CLIP, or None to leave its similarities out.
        about: words on each, or why it is left out, by "lpips", "structure", "clip", and on what is not the default.
        differs: words on each that is not the one of PIE-Bench's tables.
        device: device of the networks.
        second_clip: another CLIP, whose similarities stand beside the first one's.
        further: measure whole pictures, the edited part and CLIP's direction too.
        today: the published form is that of the official code with today's libraries.
    """

    lpips: Lpips | None = None
    structures: Mapping[str, Structure] = field(default_factory=dict)
    clip: ClipSimilarity | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    differs: Sequence[str] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    second_clip: ClipSimilarity | None = None
    further: bool = False
    today: bool = False


def load_metric_models(config: MetricConfig, device: torch.device | str = "cpu") -> MetricModels:
    """The networks that `config` names; the tables' own, where they cannot be had, are left out.

    Raises:
        ValueError: what is there is something else, or one that was asked for cannot be loaded.
    """
    lpips, about_lpips = load_lpips("squeeze", config.lpips, device)
    today = config.libraries == "today"
    structures, about_structure = load_structures(config.structure, device, today)
    clip, about_clip = load_clip(config.clip, device)
    for name, words, given, usual in (
        ("structure", None if structures else about_structure, config.structure, PUBLISHED_DINO),
        ("clip", None if clip else about_clip, config.clip, PUBLISHED_CLIP),
    ):
        if words and given != usual:
            raise ValueError(f"{words}; name another one with metrics.{name}")
    about = {"lpips": about_lpips, "structure": about_structure, "clip": about_clip}
    differs = [
        unlike_published("squeeze", config.lpips) if lpips else about_lpips,
        _other_dino(config.structure, structures) if structures else about_structure,
        _other_clip(config.clip, clip) if clip else about_clip,
        TODAY_WORDS if today else None,
    ]
    second = None
    if config.second_clip is not None:
        second, about["second_clip"] = load_clip(config.second_clip, device)
        if second is None:
            raise ValueError(f"{about['second_clip']}; name another one with metrics.second_clip")
    about |= {"further": FURTHER_WORDS} if config.further else {}
    about |= {"libraries": TODAY_WORDS} if today else {}
    found = [words for words in differs if words]
    return MetricModels(lpips, structures, clip, about, found, torch.device(device), second, config.further, today)


def _other_clip(path: str, clip: ClipSimilarity) -> str | None:
    """How a CLIP differs from that of the tables, or None."""

    def fingerprint_of(folder: str) -> str | None:
        copy, _ = load_clip(folder)
        return None if copy is None else clip_fingerprint(copy)

    words = unlike(path, PUBLISHED_CLIP, lambda: clip_fingerprint(clip), fingerprint_of)
    return words and f"CLIP of {words}"


def _other_dino(path: str, structures: Mapping[str, Structure]) -> str | None:
    """How the network of the structure distance differs from that of the tables, or None."""
    vision = structures["published"].vision

    def fingerprint_of(folder: str) -> str | None:
        copy, _ = load_structures(folder)
        return fingerprint(copy["published"].vision) if copy else None

    if vision.config.model_type != "vit":
        return f"structure distance by the CLIP of {path}, not by {PUBLISHED_DINO}"
    words = unlike(path, PUBLISHED_DINO, lambda: fingerprint(vision), fingerprint_of)
    return words and f"structure distance by the ViT of {words}"


def load_clip(path: str, device: torch.device | str = "cpu") -> tuple[ClipSimilarity | None, str]:
    """The CLIP of a folder or hub id and what it is in words; or None and why there is none."""
    try:
        clip = ClipSimilarity(path, device)
    except OSError as error:
        return None, f"CLIP similarity is left out: {path} could not be loaded ({_reason(error)})"
    return clip, f"CLIP similarity ({path}, {weights_digest(clip.model)})"


def load_structures(
    path: str, device: torch.device | str = "cpu", today: bool = False
) -> tuple[Mapping[str, Structure], str]:
    """The structures of a folder or hub id by form, and words on them; or an empty mapping and why there are none.

    A ViTModel is taken for a DINO. For a CLIP both forms are the same, as there are no published figures.

    Args:
        today: the published form has today's torchvision.

    Raises:
        ValueError: it holds a model of another kind, or an incomplete one.
    """
    try:
        kind = AutoConfig.from_pretrained(path).model_type
        vision = _vision(path, kind).to(device)
    except OSError as error:
        return {}, f"structure distance is left out: {path} could not be loaded ({_reason(error)})"
    freeze(vision)
    identity = f"{path}, {weights_digest(vision)}"
    if kind == "vit":
        forms = {"published": True, "corrected": False}
        structures = {form: Structure(vision, DinoPixels(published, today)) for form, published in forms.items()}
        return structures, f"structure distance (keys of the ViT {identity})"
    structure = Structure(vision, ClipPixels.load(path, vision.config.image_size))
    words = f"structure distance (keys of the CLIP {identity}, not of DINO: not comparable with published figures)"
    return {"published": structure, "corrected": structure}, words


def _vision(path: str, kind: str) -> Any:
    if kind == "vit":
        return _complete(ViTModel, path, add_pooling_layer=False)
    if kind == "clip":
        return _complete(CLIPModel, path).vision_model
    if kind == "clip_vision_model":
        return _complete(CLIPVisionModel, path)
    raise ValueError(f"{path} holds a model of type {kind!r}, expected 'vit', 'clip' or 'clip_vision_model'")


def _complete(model_class: Any, path: str, **options: Any) -> Any:
    """The model in float32. Raises ValueError if weights are missing, where transformers would draw some."""
    model, report = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{path} lacks weights of a {model_class.__name__}: {', '.join(missing[:3])} ...")
    return model


def _reason(error: Exception) -> str:
    """First line of an error's message, as transformers' go on with advice, or that the hub was not reached."""
    return (unreachable(error) or str(error).strip().split("\n")[0]).replace("\n", "; ")
