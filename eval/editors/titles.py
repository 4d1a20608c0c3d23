"""One self-contained HTML page: what all reports share, from the names and colours of editors to the numbers' form."""

from pathlib import Path
from typing import Any

import jinja2

from data.jobs.files import write_text
from data.pages.page import decibels, duration, figure, number
from eval.editors.catalogue import REFERENCES

TITLES = {
    "turboedit": "TurboEdit",
    "turboedit_mask": "TurboEdit, auto mask",
    "turboedit_1": "TurboEdit, 1 step",
    "turboedit_2": "TurboEdit, 2 steps",
    "turboedit_short": "TurboEdit, short prompts",
    "turboedit_frozen": "TurboEdit, attention frozen",
    "turboedit_frozen_1": "TurboEdit, attention frozen, 1 step",
    "turboedit_frozen_2": "TurboEdit, attention frozen, 2 steps",
    "turboedit_given": "TurboEdit, given mask",
    "turboedit_instructive": "TurboEdit, instructions",
    "turboedit_mean": "TurboEdit, mean alone",
    "turboedit_written": "TurboEdit, written captions",
    "turboedit_written_mean": "TurboEdit, written captions, mean alone",
    "turboedit_deutch": "TurboEdit (Deutch et al.)",
    "renoise": "ReNoise",
    "infedit": "InfEdit",
    "ddim": "DDIM inversion",
    "ddim_turbo": "DDIM inversion, few-step",
    "ddpm": "DDPM inversion",
    "ddpm_turbo": "DDPM inversion, few-step",
    "ddpm_residual": "DDPM + residual",
    "sdedit": "SDEdit",
    "sdedit_turbo": "SDEdit, few-step",
    "null_text": "null-text inversion",
    "null_text_global": "null-text, global",
    "null_text_random_pivot": "null-text, random pivot",
    "null_text_random_caption": "null-text, random caption",
    "null_text_without_pivot": "null-text, no pivot",
    "textual_inversion": "textual inversion",
    "npi": "negative-prompt inversion",
    "prox_npi": "proximal NPI",
    "direct": "direct inversion",
    "ddim_p2p": "DDIM inversion, P2P",
    "null_text_sdedit": "SDEdit, null-text",
    "masactrl": "MasaCtrl",
    "direct_masactrl": "MasaCtrl, direct inversion",
    "pix2pix_zero": "pix2pix-zero",
    "direct_pix2pix_zero": "pix2pix-zero, direct inversion",
    "plug_and_play": "Plug-and-Play",
    "direct_plug_and_play": "Plug-and-Play, direct inversion",
    "leditspp": "LEDITS++",
    "instruct_pix2pix": "InstructPix2Pix",
    "blended": "blended latents, true mask",
    "inpaint": "inpainting, true mask",
    "stylediffusion": "StyleDiffusion",
    "stylediffusion_amortised": "StyleDiffusion, amortised",
    "stylediffusion_refined": "StyleDiffusion, amortised and refined",
    "stylediffusion_sdedit": "SDEdit, StyleDiffusion",
    "stylediffusion_no_p2plus": "StyleDiffusion without P2Plus",
    "stylediffusion_keys": "StyleDiffusion, keys only",
    "stylediffusion_both": "StyleDiffusion, keys and values",
    "stylediffusion_direct": "StyleDiffusion without a network",
    "stylediffusion_no_attention": "StyleDiffusion without L_attn",
    "stylediffusion_paper_form": "StyleDiffusion, paper's form",
    "stylediffusion_short": "StyleDiffusion, a tenth of the iterations",
    "imagic": "Imagic",
    "imagic_lora": "Imagic, LoRA",
    "identity": "identity (VAE)",
    "truth": "true edit (VAE)",
    "noise": "random noise",
    "ceiling": "ceiling (fresh noise)",
    "vae": "VAE round trip",
}
COLOURS = {
    "turboedit": "#0b5fa5",
    "turboedit_mask": "#13a3a3",
    "turboedit_written": "#5b8def",
    "ddim": "#e07b1f",
    "ddpm": "#9a5bc2",
    "ddpm_residual": "#d6478f",
    "sdedit": "#7d8a3c",
}
GREY = "#888888"
TEXT_GUIDED = "instruct_pix2pix_text_"
"""Name of InstructPix2Pix at one s_T, which comes behind it."""


def title_of(name: str) -> str:
    """An editor's name as people read it."""
    if name.startswith(TEXT_GUIDED):
        return f"{TITLES['instruct_pix2pix']}, s_T {name.removeprefix(TEXT_GUIDED)}"
    return TITLES.get(name, name.replace("_", " "))


def render(template: str, out: Path, **values: Any) -> Path:
    """DIR/index.html of a template and the values that it names."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "figure": figure,
        "decibels": decibels,
        "duration": duration,
        "number": number,
        "title_of": title_of,
    }
    values = {"gallery": [], "references": REFERENCES, "colours": COLOURS, "ours": "turboedit", **values}
    page = out / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, templates.get_template(template).render(values))
    return page
