"""The whole inspection of a folder of shards, and its summary for a terminal."""

from pathlib import Path

from data.captioning.tokens import TokenLimits
from data.inspection.config import InspectConfig
from data.inspection.findings import Finding, Findings, Kind
from data.inspection.fit import IndexMemory, check_backbone, check_global_batch, check_tokenizers, open_as_loader
from data.inspection.folder import inspect_folder
from data.inspection.page import Inspection, percent, readable_size, several_captions, share_cut
from data.inspection.samples import read_sample
from data.pictures.buckets import size_name

_TOLERATED_CUT = 0.05
_SHOWN_PLACES = 3
_SHOWN_SIZES = 6

CUT = Kind(
    "captions are longer than the text encoders read",
    "make the captions with data.caption --backbone and an engine that condenses them, pairs with data.edit_pairs "
    "--backbone",
    wrong=False,
)


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
            check_backbone(contents, config.backbone, config.variant, findings)
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


def terminal_report(found: Inspection) -> str:
    """The verdict and what it stands on, for a terminal."""
    contents = found.contents
    lines = []
    if contents.count:
        size = f"{readable_size(contents.bytes)}, {readable_size(contents.bytes / contents.count)} a sample"
        stage = contents.origin["stage"]
        lines.append(f"{contents.count:,} samples in {contents.num_shards:,} shards of data.{stage}: {size}")
    if contents.sizes:
        most = ", ".join(f"{size_name(size)} {count:,}" for size, count in contents.sizes.most_common(_SHOWN_SIZES))
        rest = f" and {len(contents.sizes) - _SHOWN_SIZES} more" if len(contents.sizes) > _SHOWN_SIZES else ""
        lines.append(f"shapes: {most}{rest}")
    for kind, words in (("damage", "damaged"), ("policy", "filtered out")):
        if contents.drops[kind]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(contents.drops[kind].items()))
            lines.append(f"{words}: {contents.drops[kind].total():,} of {contents.num_inputs:,} inputs ({reasons})")
    if contents.not_taken:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(contents.not_taken.items()))
        lines.append(f"not taken: {kinds}")
    if found.sampled and found.sampled.captions.count:
        lengths = ", ".join(
            f"{sum(measure.final) / len(measure.final):.1f} {measure.name}"
            for measure in found.sampled.captions.lengths()
        )
        cut = share_cut(found)
        words = f"; not read to the end: {percent(cut[1])}, as they came {percent(cut[0])}" if cut else ""
        lines.append(f"captions, on average: {lengths}{words}")
    if contents.num_several:
        lines.append(several_captions(contents))
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
