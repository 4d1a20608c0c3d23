"""Options that evaluations share, before torch loads: the name of an export or a pipeline, and the dtype."""

import re
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Type of UNets and text encoders; auto is what an export holds on a GPU, and float32 or bfloat16 on a CPU by size."""

Shapes = Literal["square", "buckets"]
"""Shapes of the pictures of a folder: the generator's square, or the bucket nearest to each picture's own."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_or_hub_id(name: str | Path, option: str, what: str = "folder made by train.export") -> str:
    """`name` again if there is such a folder, or if it may be the id of a repository on the hub.

    Args:
        name: Folder or hub id that the user gave.
        option: Name of the option that the user typed, such as "--encoder".
        what: What was expected there.

    Raises:
        ValueError: There is no such folder, and it has not the form of a hub id.
    """
    if not Path(name).is_dir() and (Path(name).exists() or not _HUB_ID.fullmatch(str(name))):
        raise ValueError(f"{option} {name}: there is no such {what}, and it is no hub id, which reads USER/NAME")
    return str(name)
