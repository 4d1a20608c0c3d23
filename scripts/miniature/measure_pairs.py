"""How right the pairs of data.edit_pairs are on the miniature, where both pictures can be read.

python -m scripts.miniature.measure_pairs runs/instruct/pairs
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
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


def measure_pairs(shards: Path, attributes: Path = Path("models/miniature/attributes")) -> dict[str, Any]:
    """Print, as JSON, what the attribute reader finds in the pictures of pairs; all, and by the instructions' verbs.

    Args:
        shards: OUT folder of data.edit_pairs
        attributes: folder of the attribute reader
    """
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
    found = {
        verb: {
            "done": Estimate.of([float(done) for done, _ in verdicts]).to_dict(),
            "kept": Estimate.of([kept for _, kept in verdicts]).to_dict(),
        }
        for verb, verdicts in rows.items()
    }
    print(json.dumps(found, indent=1))
    return found


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


if __name__ == "__main__":
    jsonargparse.auto_cli(measure_pairs)
