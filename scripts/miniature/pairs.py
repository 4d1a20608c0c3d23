"""Attributes in the pictures of generated edit pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.pictures import images
from data.shards.shard import Sample, read_manifest, read_samples, read_sidecar
from data.world.captions import read_caption
from eval.metrics.attributes import AttributeReader
from eval.metrics.pixels import Estimate
from models.pictures import from_picture

_BATCH = 128
_SUFFIXES = ("png", "jpg")


def pair_figures(shards: Path, attributes: Path) -> dict[str, Any]:
    """Find what the attribute reader sees in the pictures of pairs; in all, and by the instructions' verbs."""
    reader = AttributeReader.load(attributes, torch.device("cpu"))
    rows: dict[str, list[tuple[bool, float]]] = {"all": []}
    samples = list(_samples(shards))
    for start in tqdm(range(0, len(samples), _BATCH), unit="batch", desc="pairs"):
        part = samples[start : start + _BATCH]
        before, after = (
            reader.read(torch.stack([_picture(sample, prefix) for sample in part])) for prefix in ("source.", "")
        )
        for row, sample in enumerate(part):
            verdict = _verdict(sample, *({k: int(v[row]) for k, v in x.items()} for x in (before, after)))
            rows["all"].append(verdict)
            rows.setdefault(json.loads(sample.members["json"])["caption"].split()[0], []).append(verdict)
    return {
        verb: {
            "done": Estimate.of([float(done) for done, _ in verdicts]).to_dict(),
            "kept": Estimate.of([kept for _, kept in verdicts]).to_dict(),
        }
        for verb, verdicts in rows.items()
    }


def _samples(shards: Path) -> Iterator[Sample]:
    for unit in read_manifest(shards)["units"]:
        if unit["count"]:
            found = read_samples(shards, read_sidecar(shards / f"{unit['unit']}.json"))
            yield from (sample for sample in found if isinstance(sample, Sample))


def _picture(sample: Sample, prefix: str) -> torch.Tensor:
    content = next(sample.members[prefix + suffix] for suffix in _SUFFIXES if prefix + suffix in sample.members)
    return from_picture(images.decode(content)).contiguous()


def _verdict(sample: Sample, before: dict[str, int], after: dict[str, int]) -> tuple[bool, float]:
    """Whether what the captions change reads as the target's says, and the share of the rest that reads alike."""
    extra = json.loads(sample.members["json"])["extra"]
    source, target = (read_caption(extra[f"{name}_caption"]) for name in ("source", "target"))
    done = all(after[name] == target[name] for name in target if source[name] != target[name] >= 0)
    kept = [after[name] == before[name] for name in target if source[name] == target[name] >= 0]
    return done, float(np.mean(kept)) if kept else 1.0
