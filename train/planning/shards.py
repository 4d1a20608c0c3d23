"""The shards of a plan: how many samples, how large, whether they fit the model, and how much of captions is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from data.inspection.checks import inspect_shards
from data.inspection.config import InspectConfig
from data.inspection.findings import Finding
from data.inspection.page import Inspection, share_cut
from data.jobs.errors import CaptionerError

_SAMPLE = 2048


@dataclass(frozen=True)
class Shards:
    """Findings about a folder of shards.

    Args:
        samples: Number of samples.
        shards: Number of shards.
        bytes: Bytes of all tars.
        cut: Share of the captions that the text encoders do not read to the end; None where nobody counted.
        problems: Sentences of data.inspect about what stops a training.
        remarks: Further sentences of data.inspect.
        fingerprints: Whether latents and embeddings were compared with the model's, or why not.
    """

    samples: int
    shards: int
    bytes: int
    cut: float | None
    problems: Sequence[str]
    remarks: Sequence[str]
    fingerprints: str


def read_shards(folder: str, backbone: str, variant: str | None, global_batch: int) -> Shards | None:
    """The shards of a training, checked without reading every byte; None if there is no such folder here.

    Args:
        folder: Folder of the shards.
        backbone: Path or hub id of the model that they must fit.
        variant: File variant of the model.
        global_batch: Samples of a step.
    """
    if not Path(folder).is_dir():
        return None
    try:
        found = _inspect(folder, _local(backbone), variant, global_batch)
        fingerprints = f"those of {backbone}"
    except (CaptionerError, OSError, ValueError) as error:
        found = _inspect(folder, None, None, global_batch)
        fingerprints = f"not checked: {str(error).splitlines()[0]}"
    contents, cut, findings = found.contents, share_cut(found), found.findings
    problems, remarks = ([_sentence(f) for f in kind] for kind in (findings.problems, findings.remarks))
    return Shards(contents.count, contents.num_shards, contents.bytes, cut and cut[1], problems, remarks, fingerprints)


def _inspect(folder: str, backbone: str | None, variant: str | None, global_batch: int) -> Inspection:
    config = InspectConfig(
        backbone=backbone, variant=variant, global_batch=global_batch, sample=_SAMPLE, checksums=False
    )
    return inspect_shards(folder, config)


def _local(backbone: str) -> str:
    """The folder of a backbone; of a hub id that in the cache, as a plan downloads no weights."""
    return backbone if Path(backbone).is_dir() else snapshot_download(backbone, local_files_only=True)


def _sentence(finding: Finding) -> str:
    return f"{finding.kind.what}: {finding.places[0]} -> {finding.kind.cure}"
