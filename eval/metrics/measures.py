"""Everything that evaluations measure, and how it is printed.

A metric is a function of pictures. A measure is what it gives, under its name in results.json and the CSV files, where
values are unscaled. A figure is the estimate of a measure over edits or pictures: mean, standard error and n. A column
is the place of a measure in one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A measure as people read it.

    Args:
        name: name in results.
        title: name in words.
        unit: the unit of what is printed, or the power of ten by which that is to be multiplied.
        scale: factor of printed values.
        digits: digits after the point.
        better: the better values; None where neither is.
        whole: PIE-Bench measures it on whole pictures; its others are of the background alone.
    """

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 1
    better: Literal["higher", "lower"] | None = None
    whole: bool = False

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.better == "higher"

    @property
    def head(self) -> tuple[str, str]:
        """Title and unit, as the head of a table's column."""
        return self.title, self.unit

    def printed(self, value: float) -> str:
        """A value as tables print it."""
        return f"{self.scale * value:.{self.digits}f}"


def _by_name(measures: Sequence[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


MEASURES = _by_name(
    (
        Measure("psnr", "PSNR to the picture", "dB", better="higher"),
        Measure("psnr_to_vae", "PSNR to the VAE's round trip", "dB", better="higher"),
        Measure("latent_mse", "latent MSE", digits=4, better="lower"),
        Measure("changed", "changed", "%", 100, better="higher"),
        Measure("kept", "kept", "%", 100, better="higher"),
        Measure("kept_all", "all kept", "%", 100, better="higher"),
        Measure("psnr_outside", "PSNR outside", "dB", better="higher"),
        Measure("psnr_inside", "PSNR inside", "dB", better="higher"),
        Measure("clip", "CLIP", digits=2, better="higher"),
        Measure("structure", "structure distance", better="lower"),
        Measure("direction", "CLIP, target minus source", digits=2, better="higher"),
        Measure("moved", "distance from strength 0", "% of the range", 100, 2),
        Measure("largest", "largest |noise|", digits=2),
        Measure("std", "deviation of the noise", digits=3),
        Measure("kurtosis", "kurtosis of the noise", digits=2),
        Measure("lag1", "correlation of neighbours", digits=3),
        Measure("noisiest_std", "deviation of the noisiest noise", digits=3),
        Measure("noisiest_lag1", "correlation of neighbours in it", digits=3),
        Measure("log_likelihood", "log-likelihood per dimension", digits=3),
        Measure("covered", "of the true mask covered", "%", 100, better="higher"),
        Measure("spilt", "of the rest covered", "%", 100, better="lower"),
        Measure("nfe_invert", "NFE, invert", digits=0, better="lower"),
        Measure("nfe_edit", "NFE, edit", digits=0, better="lower"),
        Measure("seconds_invert", "time, invert", "ms", 1000, 0, "lower"),
        Measure("seconds_edit", "time, edit", "ms", 1000, 0, "lower"),
    )
)
"""Measures of scenes and reconstructions by name."""


def heading(name: str) -> str:
    """The title of one of MEASURES with its unit, as "PSNR outside (dB)"."""
    measure = MEASURES[name]
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


PIE_COLUMNS = (
    Measure("structure", "structure distance", "×10⁻³", 1e3, 2, "lower", whole=True),
    Measure("psnr", "PSNR", "dB", 1.0, 2, "higher"),
    Measure("lpips", "LPIPS", "×10⁻³", 1e3, 2, "lower"),
    Measure("mse", "MSE", "×10⁻⁴", 1e4, 2, "lower"),
    Measure("ssim", "SSIM", "×10⁻²", 1e2, 2, "higher"),
    Measure("clip_whole", "CLIP whole", "", 1.0, 2, "higher", whole=True),
    Measure("clip_edited", "CLIP edited", "", 1.0, 2, "higher", whole=True),
)
"""PIE-Bench's measures in the order of the papers' tables, which have short names of their own."""

PIE_MEASURES = _by_name((*PIE_COLUMNS, Measure("clip_source", "CLIP of the source", "", 1.0, 2, whole=True)))
"""All of PIE-Bench's measures by name: `clip_source` is the same for every editor and has no column."""

PIE_FURTHER = (
    Measure("psnr_whole", "PSNR, whole", "dB", 1.0, 2, whole=True),
    Measure("lpips_whole", "LPIPS, whole", "×10⁻³", 1e3, 2, whole=True),
    Measure("mse_whole", "MSE, whole", "×10⁻⁴", 1e4, 2, whole=True),
    Measure("ssim_whole", "SSIM, whole", "×10⁻²", 1e2, 2, whole=True),
    Measure("structure_background", "structure distance, background", "×10⁻³", 1e3, 2, "lower"),
    Measure("structure_edit", "structure distance, edited", "×10⁻³", 1e3, 2, whole=True),
    Measure("psnr_edit", "PSNR, edited", "dB", 1.0, 2, whole=True),
    Measure("lpips_edit", "LPIPS, edited", "×10⁻³", 1e3, 2, whole=True),
    Measure("mse_edit", "MSE, edited", "×10⁻⁴", 1e4, 2, whole=True),
    Measure("ssim_edit", "SSIM, edited", "×10⁻²", 1e2, 2, whole=True),
    Measure("clip_direction", "CLIP direction", "", 1.0, 2, "higher", whole=True),
)
"""What PIE-Bench is measured by on request: closeness where the edit may be is neither good nor bad."""

SECOND_CLIP = (
    Measure("second_clip_whole", "CLIP whole, second", "", 1.0, 2, "higher", whole=True),
    Measure("second_clip_edited", "CLIP edited, second", "", 1.0, 2, "higher", whole=True),
    Measure("second_clip_source", "CLIP of the source, second", "", 1.0, 2, whole=True),
    Measure("second_clip_direction", "CLIP direction, second", "", 1.0, 2, "higher", whole=True),
)
"""The measures of a second CLIP in the same evaluation; its direction is one of the further measures."""
