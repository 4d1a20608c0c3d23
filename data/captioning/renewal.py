"""Captions of an earlier version, which named the tokenizers by which they are bounded in its library's terms."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data.captioning.tokens import TokenLimits, is_former_identity
from data.jobs.errors import ShardError
from data.shards.renewal import renew_names
from data.shards.sample import SampleInfo
from data.shards.shard import Origin, Sample, read_samples


def renew_tokenizers(out: Path, origin: Origin, limits: TokenLimits) -> None:
    """Give the folder of an earlier version today's names of its tokenizers, if they count its captions as these do.

    Does nothing to other folders, and to those that were made with other options, which `run_stage` refuses.

    Args:
        out: folder of the shards, which need not be there.
        origin: what they would be made with today.
        limits: today's tokenizers.

    Raises:
        ShardError: these tokenizers count the captions of the first shard otherwise.
    """
    renew_names(out, origin, _is_former, ("tokenizers",), partial(_compare, out, limits))


def _is_former(sidecar: Mapping[str, Any]) -> bool:
    return sidecar["stage"] == "caption" and is_former_identity(str(sidecar["config"].get("tokenizers")))


def _compare(out: Path, limits: TokenLimits, sidecar: dict[str, Any]) -> None:
    """Raises ShardError if the tokens of a stored caption are not as many as today's tokenizers make of it."""
    for sample in read_samples(out, sidecar):
        if not isinstance(sample, Sample):
            continue
        info = SampleInfo.from_json(sample.members["json"])
        for name, text in (("tokens_raw", info.caption_raw), ("tokens", info.caption)):
            stored, counted = info.checks[name], limits.count(text)
            if stored != counted:
                raise ShardError(
                    f"{out} was made by an earlier version and for other tokenizers than these: its {name} of "
                    f"{info.key} are {stored}, and {counted} by these; give the --backbone that it was made for, or "
                    "another OUT folder"
                )
