"""Files of weights: which variant of them lies in a folder, where nobody says it."""

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>[\w-]+?))?"
    r"(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)
"""Names that diffusers and transformers give: model.fp16.safetensors, and the parts of large ones, whose number stands
before the variant or behind it."""


def files_by_variant(folder: str | Path) -> dict[str | None, list[Path]]:
    """Files of weights of a component's or a pipeline's folder by the variant in their names, None for plain ones."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted([*Path(folder).glob("*"), *Path(folder).glob("*/*")]):
        if name := _NAME.fullmatch(path.name):
            found.setdefault(name["variant"], []).append(path)
    return found


def only_variant(folder: str | Path) -> str | None:
    """The variant of a component's or a pipeline's files where none is plain: `save_pretrained(variant=...)` leaves it.

    None where there are plain files, or no folder, as of a hub id.

    Raises:
        ValueError: There are files of several variants and no plain ones.
    """
    found = files_by_variant(folder)
    if None in found or not found:
        return None
    names = sorted(str(name) for name in found)
    if len(names) > 1:
        raise ValueError(
            f"{folder} has files of the variants {', '.join(names)} and none without; set variant to one of them"
        )
    logger.info("%s: files of the variant %s, as there are no others", folder, names[0])
    return names[0]
