"""Checks a folder of shards before GPUs are spent on it, and writes a page that shows what is in it.

    python -m data.inspect SHARDS [--out DIR] [--backbone stabilityai/sdxl-turbo] [--global-batch 256]

The exit status is 0 if training can start, 1 if something is wrong, 2 for wrong options.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser

from data.captioning.tokens import TokenLimits
from data.inspection.findings import Finding, Findings, Kind
from data.inspection.fit import IndexMemory, check_backbone, check_global_batch, check_tokenizers, open_as_loader
from data.inspection.folder import inspect_folder
from data.inspection.page import Inspection, percent, readable_size, share_cut, write_page
from data.inspection.samples import read_sample
from data.jobs.command import underscored
from data.jobs.errors import CaptionerError

_TOLERATED_CUT = 0.05
_SHOWN_PLACES = 3

CUT = Kind(
    "captions are longer than the text encoders read",
    "make the captions with data.caption --backbone and an engine that condenses them, pairs with data.edit_pairs "
    "--backbone",
    wrong=False,
)


@dataclass(frozen=True)
class InspectConfig:
    """Options of the inspection.

    Args:
        out: folder of the page index.html; by default the folder "inspection" among the shards.
        backbone: diffusers folder or hub id that the shards must fit, and whose tokenizers show where captions are cut.
        global_batch: samples of a training step, for which the shards must suffice.
        sample: samples at random on which captions and arrays are looked at.
        checksums: read every byte of the tars and every KEY.json; false checks sizes alone, and leaves out copies of
            pictures, on folders too large to be read.
    """

    out: str | None = None
    backbone: str | None = None
    global_batch: int | None = None
    sample: int = 4096
    checksums: bool = True

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError(f"--sample is {self.sample}, expected at least 1")
        if self.global_batch is not None and self.global_batch < 1:
            raise ValueError(f"--global-batch is {self.global_batch}, expected at least 1")


def inspect_shards(folder: str | Path, config: InspectConfig) -> Inspection:
    """Checks a folder of shards of data.caption, data.edit_pairs or data.encode.

    Raises:
        ShardError: if there is no such folder.
        CaptionerError, ValueError or OSError: if there is no such backbone.
    """
    folder = Path(folder)
    findings = Findings()
    limits = TokenLimits.load(config.backbone) if config.backbone else None
    contents = inspect_folder(folder, config.sample, config.checksums, findings)
    memory: list[IndexMemory] = []
    sampled = None
    if contents.origin:
        if not findings.problems:
            memory = open_as_loader(folder, contents, findings)
        if config.backbone and limits:
            check_backbone(contents, config.backbone, findings)
            check_tokenizers(contents, limits, findings)
        if config.global_batch:
            check_global_batch(contents, config.global_batch, findings)
        sampled = read_sample(folder, contents, limits, findings)
    found = Inspection(
        folder, findings, contents, sampled, memory, config.backbone, config.global_batch, config.checksums
    )
    cut = share_cut(found)
    if cut is not None and cut[1] > _TOLERATED_CUT:
        findings.add(CUT, f"{percent(cut[1])} of the captions are cut, {percent(cut[0])} as they came")
    return found


def summary(found: Inspection) -> str:
    """The verdict and what it stands on, for a terminal."""
    contents = found.contents
    lines = []
    if contents.count:
        size = f"{readable_size(contents.bytes)}, {readable_size(contents.bytes / contents.count)} a sample"
        stage = contents.origin["stage"]
        lines.append(f"{contents.count:,} samples in {contents.num_shards:,} shards of data.{stage}: {size}")
    for kind, words in (("damage", "damaged"), ("policy", "filtered out")):
        if contents.drops[kind]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(contents.drops[kind].items()))
            lines.append(f"{words}: {contents.drops[kind].total():,} of {contents.num_inputs:,} inputs ({reasons})")
    if found.sampled and found.sampled.captions.count:
        lengths = ", ".join(
            f"{sum(measure.final) / len(measure.final):.1f} {measure.name}"
            for measure in found.sampled.captions.lengths()
        )
        cut = share_cut(found)
        words = f"; not read to the end: {percent(cut[1])}, as they came {percent(cut[0])}" if cut else ""
        lines.append(f"captions, on average: {lengths}{words}")
    if found.global_batch and contents.count:
        batches, over = divmod(contents.count, found.global_batch)
        lines.append(f"an epoch: {batches:,} global batches of {found.global_batch:,}, {over:,} samples over")
    lines += [f"the loader's index: {readable_size(m.bytes)} ({', '.join(m.fields)})" for m in found.memory]
    lines.append(found.verdict)
    lines += [_line(f"{number}.", problem) for number, problem in enumerate(found.findings.problems, start=1)]
    lines += [_line("-", remark) for remark in found.findings.remarks]
    return "\n".join(lines)


def _line(bullet: str, finding: Finding) -> str:
    places = "; ".join(finding.places[:_SHOWN_PLACES])
    more = f"; and {finding.count - _SHOWN_PLACES:,} more" if finding.count > _SHOWN_PLACES else ""
    return f"  {bullet} {finding.kind.what}: {places}{more}\n     -> {finding.kind.cure}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point.

    Raises:
        SystemExit: with status 1 if something is wrong, 2 for wrong options.
    """
    parser = ArgumentParser(prog="python -m data.inspect", description=__doc__)
    parser.add_argument("shards", type=str, help="OUT folder of data.caption, data.edit_pairs or data.encode")
    parser.add_class_arguments(InspectConfig, as_group=False)
    options = parser.parse_args(underscored(sys.argv[1:] if arguments is None else arguments)).as_dict()
    folder = options.pop("shards")
    try:
        config = InspectConfig(**options)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        found = inspect_shards(folder, config)
        page = write_page(found, Path(config.out or Path(folder) / "inspection"))
    except (CaptionerError, ValueError, OSError) as error:
        raise SystemExit(f"data.inspect: {error}") from error
    print(summary(found))
    print(f"page: {page}")
    if found.findings.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
