"""PIE-Bench's measures as people read them: titles, the scales of tables, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A measure in a table.

    Args:
        measure: its name in results.json and cases.csv, where values are unscaled.
        title: in words.
        scale: what tables multiply by, as the papers do.
        digits: after the point.
        higher: whether more is better.
        whole: measured on whole pictures; the others on the background alone.
    """

    measure: str
    title: str
    scale: float
    digits: int
    higher: bool
    whole: bool = False

    @property
    def unit(self) -> str:
        """What a printed figure is multiplied by, or dB."""
        if self.measure == "psnr":
            return "dB"
        return {1.0: "", 1e2: "×10⁻²", 1e3: "×10⁻³", 1e4: "×10⁻⁴"}[self.scale]

    def printed(self, value: float) -> str:
        """A value in the table's scale."""
        return f"{self.scale * value:.{self.digits}f}"


COLUMNS = (
    Column("structure", "structure distance", 1e3, 2, higher=False, whole=True),
    Column("psnr", "PSNR", 1.0, 2, higher=True),
    Column("lpips", "LPIPS", 1e3, 2, higher=False),
    Column("mse", "MSE", 1e4, 2, higher=False),
    Column("ssim", "SSIM", 1e2, 2, higher=True),
    Column("clip_whole", "CLIP whole", 1.0, 2, higher=True, whole=True),
    Column("clip_edited", "CLIP edited", 1.0, 2, higher=True, whole=True),
)
"""In the order of the papers' tables. Without `clip_source`, which is the same for every editor."""

BY_MEASURE = {column.measure: column for column in COLUMNS}
