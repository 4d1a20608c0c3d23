"""Stage images -> captioned shards: pictures become KEY.json and KEY.jpg, KEY.png or KEY.webp.

    python -m data.caption INPUT OUT --engine existing --resolution 512

INPUT is a folder tree of pictures, a folder of WebDataset shards, or a JSONL list. Pictures are JPEG, PNG, WebP, AVIF,
BMP, GIF and TIFF, and after pip install '.[pictures]' HEIC and JPEG XL; what is left out is counted and listed. Run the
same command again after a kill, and it goes on where it was; `accelerate launch -m data.caption ...` and `srun` divide
the work over processes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.jobs.command import run


def caption(source: str | Path, out: str | Path, config: CaptionConfig) -> dict[str, Any]:
    """Caption the pictures of `source`; returns the manifest of `out`.

    Args:
        source: folder tree of pictures, folder of WebDataset shards, or JSONL list.
        out: folder of the shards; new, or left by the same command.
        config: options of the stage.
    """
    return caption_folder(source, out, config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.caption", caption, arguments, positional=True)


if __name__ == "__main__":
    main()
