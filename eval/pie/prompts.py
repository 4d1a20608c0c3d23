"""The prompts of a PIE-Bench row: the benchmark's short ones, its long ones, or those that a captioner writes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.captioning.config import CaptioningConfig
from data.captioning.maker import Caption, CaptionMaker
from data.captioning.tasks import rewrite
from data.jobs.files import file_digest
from data.jobs.kept import KeptFolder
from eval.pie.cases import PieCase
from eval.pie.edits import PromptPairs, read_pixels

_BATCH = 32


def benchmark_prompts(cases: Sequence[PieCase]) -> PromptPairs:
    """The benchmark's own."""
    return {case.key: (case.source_prompt, case.target_prompt) for case in cases}


def long_prompts(cases: Sequence[PieCase]) -> PromptPairs:
    """Detailed descriptions, of the cases that have such. PIE-Bench itself has none."""
    return {case.key: case.long_prompts for case in cases if case.long_prompts is not None}


def written_prompts(cases: Sequence[PieCase], folder: Path, config: CaptioningConfig) -> PromptPairs:
    """A captioner's description of each source, and the same after the smallest change by the edit's instruction.

    TurboEdit's setting for instructions (arXiv 2408.08332, section 4). Kept in `folder`, in batches, so that a killed
    run and its other processes do not ask twice. A picture that gets no caption, or no rewriting, has no pair.

    Raises:
        ValueError: the folder holds those of another captioner.
    """
    kept = KeptFolder(folder, {"model": config.model, "prompt": config.prompt, "backbone": config.backbone})
    parts = {_name(part): part for part in (cases[at : at + _BATCH] for at in range(0, len(cases), _BATCH))}
    maker: CaptionMaker | None = None
    sizes = {name: len(part) for name, part in parts.items()}
    for name in kept.missing(sizes, "prompts from instructions", "caption"):
        maker = maker or CaptionMaker(config)
        kept.keep(name, _write(parts[name], maker))
    pairs: dict[str, tuple[str, str]] = {}
    for name in parts:
        pairs |= {key: (source, target) for key, (source, target) in kept.read(name).items()}
    return pairs


def _name(part: Sequence[PieCase]) -> str:
    words = "\n".join(f"{case.key} {case.instruction} {file_digest(case.image)}" for case in part)
    return f"prompts-{part[0].key}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _write(part: Sequence[PieCase], maker: CaptionMaker) -> dict[str, list[str]]:
    pictures = [Image.fromarray(read_pixels(case.image)) for case in part]
    made = maker.captions(pictures, [None] * len(part))
    sources = {case.key: c.text for case, c in zip(part, made, strict=True) if isinstance(c, Caption)}
    orders = [case.instruction for case in part if case.key in sources]
    targets = rewrite(maker.captioner(), list(sources.values()), orders) if sources else []
    return {key: [source, target] for (key, source), target in zip(sources.items(), targets, strict=True) if target}
