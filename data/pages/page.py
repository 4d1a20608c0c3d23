"""Self-contained HTML pages: how they are rendered, and the form of numbers and pictures on them."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from data.jobs.files import write_text

EXACT = 60.0
"""dB from which two pictures are equal at 8 bits."""


Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture in a gallery: a data URI, and words under it."""

    uri: str
    note: str = ""
    good: bool | None = None


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Milliseconds or seconds."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def figure(estimate: Figures | None, scale: float = 1.0, digits: int = 1) -> Markup:
    """Mean and standard error of an estimate's dict."""
    if estimate is None or estimate["mean"] is None:
        return Markup("–")
    error = "" if estimate["se"] is None else f" <small>± {scale * estimate['se']:.{digits}f}</small>"
    return Markup(f"{scale * estimate['mean']:.{digits}f}{error}")


def decibels(estimate: Figures | None, digits: int = 1) -> Markup:
    """Mean and standard error of a PSNR; "exact" where all pictures are equal, and how many are where some are.

    Equal pictures have no finite PSNR: what stands for it in the mean lifts that, so the others' mean stands beside it.
    """
    if estimate is None or estimate["mean"] is None:
        return Markup("–")
    exact = estimate.get("exact", estimate["n"] if estimate["mean"] >= EXACT else 0)
    if exact == estimate["n"]:
        return Markup("exact")
    words = figure(estimate, 1.0, digits)
    if not exact:
        return words
    apart = f"{exact} of {estimate['n']} exact, others {number(estimate['others']['mean'], digits)}"
    return Markup("{} <small>{}</small>").format(words, apart)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "figure": figure,
    "decibels": decibels,
    "duration": duration,
    "number": number,
}
"""Filters of all templates."""


def write_html(
    folder: Path, template: str, out: Path, filters: Mapping[str, Callable[..., Any]], **values: Any
) -> Path:
    """Write OUT/index.html, whole or not at all.

    Args:
        folder: Folder of the template. What it does not have is taken from data/pages/templates: page.html.j2, which
            pages extend, and macros.html.j2.
        template: File name of the template.
        out: Folder of the page; made if missing.
        filters: Filters of this template by name, beside `FILTERS`.
        values: Values that the template names; one that it does not find is an error.

    Returns:
        The path of the page.
    """
    templates = _templates(folder, tuple(filters.items()))
    page = out / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, templates.get_template(template).render(values))
    return page


@functools.cache
def _templates(folder: Path, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> jinja2.Environment:
    """The environment of a folder's templates, in which each is compiled once."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {**FILTERS, **dict(filters)}
    return templates


def picture_uri(image: np.ndarray) -> str:
    """A uint8 picture [H, W, 3] as the data URI of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
