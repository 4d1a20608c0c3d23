"""Which cases a user wants, and those that can be used of them."""

from dataclasses import dataclass
from pathlib import Path

from data.captioning.config import CaptioningConfig
from data.captioning.maker import CaptionMaker
from data.jobs.kept import KeptFolder
from eval.case_edits.cases import FoundCases, completed_cases, read_cases


@dataclass(frozen=True)
class Wanted:
    """Cases of a folder, as the options of a command name them.

    Args:
        data: Folder of PIE-Bench, or of captioned photographs.
        side: Side in pixels of the squares on which the model works.
        num: Most cases of each kind.
        targets: Descriptions of edited photographs, for those whose row has no edit of its own.
        instructions: Orders, likewise, of which the captioner makes targets.
        maker: The captioner, or None.
        kept: Folder where its texts are kept.
    """

    data: Path
    side: int
    num: int
    targets: tuple[str, ...]
    instructions: tuple[str, ...]
    maker: CaptionMaker | None
    kept: KeptFolder


def captioner_of(captioner: str | None, tokenizers: str, device: str) -> CaptionMaker | None:
    """The captioner of a folder or hub id, for the tokenizers of a pipeline; None without one."""
    if captioner is None:
        return None
    return CaptionMaker(CaptioningConfig("transformers", model=captioner, backbone=tokenizers, device=device))


def usable_cases(wanted: Wanted) -> tuple[FoundCases, dict[str, str]]:
    """The cases with their targets, and the reasons why others cannot be used, by key.

    Raises:
        ValueError: No case can be used.
    """
    found = read_cases(wanted.data, wanted.side, wanted.num, wanted.targets, wanted.instructions)
    ready = completed_cases(found.cases, wanted.maker, wanted.kept)
    return ready, {**found.left_out, **ready.left_out}
