"""What eval.instructive compares: InstructPix2Pix at several guidances beside TurboEdit, and the claim in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from data.world.render import SIDE
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.editors.titles import TEXT_GUIDED, title_of
from eval.harness.exports import export_folder, read_index
from eval.harness.fingerprints import network_fingerprint
from eval.scene_edits.figures import Results, changed_types
from eval.scene_edits.instructions import CLAIM, SOURCE, EqualLevel
from eval.scene_edits.sweeps import choose_strength
from models.turboedit_pipeline import TurboEditPipeline

OURS = "turboedit_instructive"


def load_rivals(
    name: str,
    pipeline: TurboEditPipeline,
    text_guidances: Sequence[float],
    image_guidances: Sequence[float],
    num_steps: int,
    device: torch.device,
    variant: str | None = None,
) -> list[InstructPix2Pix]:
    """InstructPix2Pix at each s_T on one set of networks; its strengths are s_I, from weak edits to strong ones."""
    read_index(export_folder(name), StableDiffusionInstructPix2PixPipeline.__name__)
    loaded = InstructPix2Pix(name, device, variant=variant, num_steps=num_steps)
    size = loaded.pipeline.unet.config.sample_size * loaded.pipeline.vae_scale_factor
    if size != SIDE:
        raise ValueError(f"{name} makes {size} px images; scenes have {SIDE} px: give another one by --instruct")
    if network_fingerprint(loaded.pipeline.vae) != network_fingerprint(pipeline.vae):
        raise ValueError(
            f"{name} has another VAE than the encoder's generator, so their PSNR would not compare; give models of "
            "one miniature by --instruct and --encoder"
        )
    strengths = sorted(set(image_guidances), reverse=True)
    return [loaded.swept(f"{TEXT_GUIDED}{scale:g}", scale, strengths) for scale in sorted(set(text_guidances))]


def choose_rival(by_editor: Results, strengths: Mapping[str, float]) -> dict[str, Any]:
    """The entry `chosen.instruct_pix2pix`: the best of all pairs of s_T and s_I by `choose_strength`.

    Each s_T has the best of its s_I already, so the best of these is the best of all.
    """
    types = changed_types(by_editor["ceiling"])
    rivals = {name: strengths[name] for name in by_editor if name.startswith(TEXT_GUIDED)}
    name = choose_strength(
        {name: by_editor[name].estimate(s, "changed", types) for name, s in rivals.items()},
        {name: by_editor[name].estimate(s, "kept") for name, s in rivals.items()},
    )
    return {"name": name, "text_guidance": float(name.removeprefix(TEXT_GUIDED)), "image_guidance": strengths[name]}


def claim_figures(comparisons: Sequence[EqualLevel]) -> dict[str, Any]:
    """The entry `claim`."""
    return {
        "sentence": CLAIM,
        "source": SOURCE,
        "verdict": comparisons[0].verdict,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }


def claim_words(comparisons: Sequence[EqualLevel], preferred: Mapping[str, Any], strengths: Mapping[str, float]) -> str:
    """Write what was chosen and what became of the claim as text."""
    lines = [
        f"chosen: TurboEdit at strength {strengths[OURS]:g}, InstructPix2Pix at s_T {preferred['text_guidance']:g}, "
        f"s_I {preferred['image_guidance']:g}",
        f"{comparisons[0].verdict}: {CLAIM}",
    ]
    for found in comparisons:
        where = "CLIP" if found.measure == "clip" else "changed"
        note = "" if found.overlap else ", nearest: the sweeps do not overlap"
        lines.append(
            f"  PSNR outside, less {title_of(found.against)}, at equal {where} ({found.level:.3g}{note}): "
            f"{found.gain.words('dB')}, n = {found.gain.n}, {found.verdict}"
        )
    return "\n".join(lines)
