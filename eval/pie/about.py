"""Conditions of a PIE-Bench evaluation: versions, machine, data, and what sets it apart from published ones."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from data.jobs.files import file_digest
from eval.pie.cases import PieCase

_PIE_SIDE = 512
_PIE_TYPES = {"0": 140, **dict.fromkeys("1238", 80), **dict.fromkeys("4567", 40), "9": 80}
"""PIE-Bench's cases by type (Ju et al. 2024): 700 together."""


def data_digest(cases: Sequence[PieCase]) -> str:
    """Digest of pictures, prompts and masks."""
    digest = hashlib.sha256()
    for case in cases:
        texts = (case.key, file_digest(case.image), case.source_prompt, case.target_prompt, case.instruction)
        digest.update("\n".join(texts).encode())
        digest.update(case.mask.tobytes())
    return digest.hexdigest()[:16]


def differences_from_published(cases: Sequence[PieCase], networks: Sequence[str], jpeg: bool) -> list[str]:
    """Reasons why the figures of this evaluation do not compare with published ones, in words; empty if they do.

    Args:
        networks: Words on each network that is not the one of the tables (eval.metrics.networks).
    """
    found = []
    if len(cases) != sum(_PIE_TYPES.values()):
        found.append(f"{len(cases)} cases, PIE-Bench has {sum(_PIE_TYPES.values())}")
    elif (types := dict(Counter(case.type_id for case in cases))) != _PIE_TYPES:
        found.append(f"cases by type {dict(sorted(types.items()))}, PIE-Bench has {_PIE_TYPES}")
    sizes = Counter(case.mask.shape for case in cases)
    if others := sum(count for size, count in sizes.items() if size != (_PIE_SIDE, _PIE_SIDE)):
        listed = ", ".join(
            f"{width}x{height}" for height, width in sorted(sizes) if (height, width) != (_PIE_SIDE, _PIE_SIDE)
        )
        found.append(f"{others} pictures of {listed} px, not {_PIE_SIDE}x{_PIE_SIDE}")
    found += networks
    if not jpeg:
        found.append("edits are measured as PNG, the official runners saved them as JPEG (--jpeg true)")
    return found
