"""Editors as pages show them: titles, colours, and the one way to write a page with them."""

import re
from pathlib import Path
from typing import Any

from data.pages import page
from eval.editors.catalogue import COLOURS, KNOWN, ON_MANY_STEPS, REFERENCES

GREY = "#888888"
TEXT_GUIDED = "instruct_pix2pix_text_"
"""Name of InstructPix2Pix at one s_T, which comes behind it."""

_TEMPLATES = Path(__file__).parents[1] / "templates"
_TITLES = {known.name: known.title for known in KNOWN}
_TURBO = "_turbo"
_MANY_STEP_NAMES = {known.name for known in ON_MANY_STEPS}


def few_step_name(name: str) -> str:
    """The name of a few-step editor beside those of a many-step model, some of which are called the same."""
    return f"{name}{_TURBO}" if name in _MANY_STEP_NAMES else name


def title_of(name: str) -> str:
    """The name of an editor, or of one of its forms (`few_step_name`, NAME_STEPS, at one s_T), as people read it."""
    if name in _TITLES:
        return _TITLES[name]
    if name.startswith(TEXT_GUIDED):
        return f"{_TITLES['instruct_pix2pix']}, s_T {name.removeprefix(TEXT_GUIDED)}"
    if name.removesuffix(_TURBO) in _TITLES:
        return f"{_TITLES[name.removesuffix(_TURBO)]}, few-step"
    if (form := re.fullmatch(r"(.+)_(\d+)", name)) and form[1].removesuffix(_TURBO) in _TITLES:
        return f"{title_of(form[1])}, {form[2]} step{'' if form[2] == '1' else 's'}"
    return name.replace("_", " ")


def render_page(template: str, out: Path, **values: Any) -> Path:
    """Write OUT/index.html from a template of eval/templates, with the titles and colours of editors at hand."""
    values = {"gallery": [], "references": REFERENCES, "colours": COLOURS, "ours": "turboedit", **values}
    return page.write_html(_TEMPLATES, template, out, {"title_of": title_of}, **values)
