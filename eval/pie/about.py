"""Conditions of a PIE-Bench evaluation: versions, machine, data, and what sets it apart from published ones."""

import hashlib
from collections.abc import Mapping, Sequence

from data.jobs.files import file_digest
from eval.metrics.config import PUBLISHED_DINO
from eval.pie.cases import PieCase

_PIE_CASES, _PIE_SIDE = 700, 512


def data_digest(cases: Sequence[PieCase]) -> str:
    """Digest of pictures, prompts and masks."""
    digest = hashlib.sha256()
    for case in cases:
        texts = (case.key, file_digest(case.image), case.source_prompt, case.target_prompt, case.instruction)
        digest.update("\n".join(texts).encode())
        digest.update(case.mask.tobytes())
    return digest.hexdigest()[:16]


def differences_from_published(cases: Sequence[PieCase], metrics: Mapping[str, str], jpeg: bool) -> list[str]:
    """Reasons why the figures of this evaluation do not compare with published ones, in words; empty if they do."""
    found = []
    if len(cases) != _PIE_CASES:
        found.append(f"{len(cases)} cases, PIE-Bench has {_PIE_CASES}")
    if cases[0].mask.shape != (_PIE_SIDE, _PIE_SIDE):
        found.append(f"pictures of {cases[0].mask.shape[1]}x{cases[0].mask.shape[0]} px, not {_PIE_SIDE}x{_PIE_SIDE}")
    if PUBLISHED_DINO not in metrics.get("structure", ""):
        found.append(metrics.get("structure", "no structure distance"))
    found += [metrics["libraries"]] if "libraries" in metrics else []
    found += [words for name, words in metrics.items() if "left out" in words and name != "structure"]
    if not jpeg:
        found.append("edits are measured as PNG, the official runners saved them as JPEG (--jpeg true)")
    return found
