"""Conditions of a PIE-Bench evaluation: versions, machine, data, and what sets it apart from published ones."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from data.jobs.files import file_digest
from data.pages.page import counted
from eval.pie.cases import PieCase
from models.shapes import size_words

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


def data_words(cases: Sequence[PieCase]) -> list[str]:
    """Words on pictures, masks and prompts that are not as PIE-Bench's own; none where all are."""
    words = []
    if resized := [case for case in cases if case.cutout is not None]:
        cutout = resized[0].cutout
        assert cutout is not None
        words.append(
            f"cropped at the centre and resized to what the models take: {len(resized)} of {len(cases)} pictures, "
            f"the first {resized[0].key} from {size_words(cutout.original)} to {size_words(cutout.size)}"
        )
    if turned := sum(case.turned for case in cases):
        words.append(f"turned upright by EXIF, which PIE-Bench's code does not read: {turned} of {len(cases)} pictures")
    if unmasked := sum(not case.masked for case in cases):
        instead = ", and whole pictures measured instead" if unmasked == len(cases) else " of these"
        words.append(
            f"without a mask: {unmasked} of {len(cases)} cases; PSNR, LPIPS, MSE and SSIM of the background and CLIP "
            f"edited are left out{instead}"
        )
    if silent := sum(not case.source_prompt for case in cases):
        words.append(f"without a source prompt: {silent} of {len(cases)} cases; editors are given an empty one")
    return words


def differences_from_published(cases: Sequence[PieCase], networks: Sequence[str], jpeg: bool) -> list[str]:
    """Reasons why the figures of this evaluation do not compare with published ones, in words; empty if they do.

    Args:
        networks: Words on each network that is not the one of the tables (eval.metrics.networks).
    """
    found = []
    if len(cases) != sum(_PIE_TYPES.values()):
        found.append(f"{counted(len(cases), 'case')}, PIE-Bench has {sum(_PIE_TYPES.values())}")
    elif (types := dict(Counter(case.type_id for case in cases))) != _PIE_TYPES:
        found.append(f"cases by type {dict(sorted(types.items()))}, PIE-Bench has {_PIE_TYPES}")
    sizes = Counter(case.mask.shape for case in cases)
    if others := sum(count for size, count in sizes.items() if size != (_PIE_SIDE, _PIE_SIDE)):
        listed = ", ".join(
            f"{width}x{height}" for height, width in sorted(sizes) if (height, width) != (_PIE_SIDE, _PIE_SIDE)
        )
        found.append(f"{others} pictures of {listed} px, not {_PIE_SIDE}x{_PIE_SIDE}")
    if resized := sum(case.cutout is not None for case in cases):
        found.append(f"cropped and resized pictures: {resized}")
    if unmasked := sum(not case.masked for case in cases):
        found.append(f"cases without a mask: {unmasked}")
    found += networks
    if not jpeg:
        found.append("edits are measured as PNG, the official runners saved them as JPEG (--jpeg true)")
    return found
