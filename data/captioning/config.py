"""Options of captions, and those of the stage that makes them for a folder of pictures."""

from dataclasses import dataclass
from typing import Literal

from data.captioning.engines import EngineConfig
from data.captioning.tasks import DEFAULT_PROMPT
from data.pictures.buckets import Size, nearest_bucket
from data.pictures.source import CaptionPolicy


@dataclass(frozen=True)
class CaptioningConfig(EngineConfig):
    """Options of how captions are made, beside those of the engine.

    The engine "existing" takes captions that are there: metadata.jsonl, .csv or .parquet, or a .txt or .caption beside
    the picture.

    Args:
        keep_existing: keep captions that are there, and ask the engine only about pictures that have none.
        prompt: words that the engine is asked about each picture; the default is TurboEdit's.
        backbone: diffusers folder or hub id whose tokenizers bound the caption (only they are loaded); without it
            nothing is counted and nothing is condensed.
        condense: let the engine shorten captions that the backbone would not read to the end; by default wherever there
            are an engine and a backbone.
        clean: strip stock openings ("The image features ..."), and drop refusals and endless repetition; by default for
            captions that an engine writes, and not for those that are there.
    """

    keep_existing: bool = False
    prompt: str = DEFAULT_PROMPT
    backbone: str | None = None
    condense: bool | None = None
    clean: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.writes and self.condense:
            raise ValueError("--condense true needs an engine that writes; give --engine transformers or server")
        if self.condense and self.backbone is None:
            raise ValueError("--condense true needs --backbone, whose tokenizers say how long a caption may be")
        if not self.prompt.strip():
            raise ValueError("--prompt is empty; leave it out for the default")


@dataclass(frozen=True)
class CaptionConfig(CaptioningConfig):
    """Options of the stage data.caption.

    Args:
        resolution: side in pixels of the square, or of the square with the area of the buckets.
        shapes: "square" keeps the centre square; "buckets" keeps nearly all of a picture, cropped at the centre to the
            nearest of SDXL's aspects, sides multiples of 64 and about the square's area.
        min_size: pictures whose shorter side is below this many pixels are dropped as "too small"; by default those
            that would have to be enlarged.
        drop_duplicates: drop pictures whose file is byte by byte that of an earlier one in the order of names; true
            reads all pictures once before anything else.
        max_damage: share of damaged files over which the stage stops; bad lines of lists are counted, but are no files.
        several: what is taken of several captions in a list ("text": ["a", "b"]): the first, all of them joined by
            spaces, or random: shards hold all of them, and each epoch of a training takes one, by its run.seed, so that
            each comes once before one comes again.
        lines: which lines of a .txt or .caption are taken, such as translations or tags below a caption.
        unit_size: pictures a shard.
        threads: threads that read and decode pictures in each process.
    """

    resolution: int = 512
    shapes: Literal["square", "buckets"] = "square"
    min_size: int | None = None
    drop_duplicates: bool = True
    max_damage: float = 0.05
    several: Literal["first", "joined", "random"] = "first"
    lines: Literal["all", "first"] = "all"
    unit_size: int = 256
    threads: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution < 8 or self.resolution % 8:
            raise ValueError(f"--resolution is {self.resolution}, expected a multiple of 8 (what VAEs divide by)")
        if self.shapes == "buckets" and self.resolution % 64:
            raise ValueError(f"--resolution is {self.resolution}, expected a multiple of 64 with --shapes buckets")
        if self.min_size is not None and self.min_size < 1:
            raise ValueError(f"--min-size is {self.min_size}, expected at least 1 pixel")
        for name in ("unit_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")

    def takes(self, size: Size) -> bool:
        """Whether a picture is large enough."""
        if self.min_size is not None:
            return min(size) >= self.min_size
        target = self.target(size)
        return size[0] >= target[0] and size[1] >= target[1]

    def target(self, size: Size) -> Size:
        """The size to which a picture is brought."""
        square = (self.resolution, self.resolution)
        return square if self.shapes == "square" else nearest_bucket(size, self.resolution)

    @property
    def policy(self) -> CaptionPolicy:
        """What is taken where there are several captions."""
        return CaptionPolicy(self.several, self.lines)

    @property
    def reads_texts(self) -> bool:
        """Whether captions that are there are used."""
        return self.engine == "existing" or self.keep_existing
