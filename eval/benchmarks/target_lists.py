"""Lists of pictures with several target prompts each, in YAML: TI2I's (Tumanyan et al. 2023), FlowEdit's.

An item has `init_img`, a path, `target_prompts`, a list, and `source_prompt`, which TI2I's real pictures lack.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from eval.benchmarks.entries import NO_MASK, BadAnnotation, Entry, Unusable, entry_of, find_picture


def read_target_list(path: Path) -> Iterator[Entry | BadAnnotation]:
    """An entry for each target prompt of each picture, under keys such as 003_0_bear_sketch. There are no masks.

    Raises:
        ValueError: the file is not YAML of the right shape.
    """
    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{path} is no list of pictures; expected items with init_img and target_prompts, as TI2I's")
    for number, item in enumerate(items):
        yield from _entries(path.parent, number, item)


def _entries(folder: Path, number: int, item: Mapping[str, Any]) -> Iterator[Entry | BadAnnotation]:
    name, targets = item.get("init_img"), item.get("target_prompts")
    if not isinstance(name, str) or not isinstance(targets, list) or not targets:
        yield BadAnnotation(f"{number:03d}", "expected init_img, a path, and target_prompts, a list")
        return
    file = PurePosixPath(name)
    for turn, target in enumerate(targets):
        key = f"{number:03d}_{turn}_{file.stem}"
        fields = {"source_prompt": item.get("source_prompt") or "", "target_prompt": target}
        try:
            yield entry_of(key, fields, find_picture(folder, name), f"{key}{file.suffix}", NO_MASK)
        except Unusable as error:
            yield BadAnnotation(key, str(error))
