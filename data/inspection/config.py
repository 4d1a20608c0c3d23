"""Options of data.inspect."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InspectConfig:
    """Options of the inspection.

    Args:
        out: folder of the page index.html; by default the folder "inspection" among the shards.
        backbone: diffusers folder or hub id that the shards must fit, and whose tokenizers show where captions are cut.
        variant: file variant of the backbone's weights, such as fp16.
        global_batch: samples of a training step, for which the shards must suffice.
        sample: samples at random on which captions and arrays are looked at.
        checksums: read every byte of the tars and every KEY.json; false checks sizes alone, and leaves out copies of
            pictures, on folders too large to be read.
    """

    out: str | None = None
    backbone: str | None = None
    variant: str | None = None
    global_batch: int | None = None
    sample: int = 4096
    checksums: bool = True

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError(f"--sample is {self.sample}, expected at least 1")
        if self.global_batch is not None and self.global_batch < 1:
            raise ValueError(f"--global-batch is {self.global_batch}, expected at least 1")
