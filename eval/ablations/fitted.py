"""Ablations of StyleDiffusion's fits: closeness beside other inversions, one-word prompts, the map of a word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from data.world.edits import Edit
from data.world.render import object_mask
from eval.ablations.bench import Ablation, EditBench, Setting, Work, above, difference, edit_strips, strip_columns
from eval.claims.judging import Comparison
from eval.editors.builders import null_text, style
from eval.editors.editor import Editor, ReconstructingEditor, settings_of
from eval.editors.guided_ddim import GuidedDdim
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.models import ManyStepModel
from eval.harness.fingerprints import network_fingerprint
from eval.metrics.lpips import Lpips
from eval.metrics.pixels import ns_lpips, psnr, ssim
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.result import EditorResult
from models.attention import controlled
from models.attention_maps import AttentionMaps, Capture, token_heat
from models.ddim import ddim_pivots, matching
from models.options import FitSchedule, StyleObjective
from models.pictures import from_pictures
from models.stylediffusion import GuidedStep, fit_modulations
from models.text import Prompt
from models.value_mapper import Modulation
from models.words import changed_tokens, named_tokens

ONE_WORD = ("change_object",)
"""Kinds of edits that exchange one word for another where the prompt is a shape alone."""

_SHARED = 0.4
"""Strength of edits with Prompt-to-Prompt: shares of 0.6, StyleDiffusion's own tau_c and tau_s."""
_NOISED = 0.6
"""Share of the steps that SDEdit samples."""
_SHOWN = (0, 3, 5, 7)
_MEASURES = ("changed", "kept", "psnr_outside", "structure", "clip")


@dataclass(frozen=True)
class Fits:
    """The fits that are compared.

    Args:
        model: The backbone with its steps, null-text inversion's schedule and CLIP's tokens.
        schedule: StyleDiffusion's fit of each image.
        lpips: LPIPS with AlexNet, or None.
    """

    model: ManyStepModel
    schedule: FitSchedule
    lpips: Lpips | None = None


def ablate_closeness(bench: EditBench, fits: Fits) -> Ablation:
    """Reconstructions and edits of StyleDiffusion, null-text inversion, SDEdit and DDIM inversion (tables 2 and 3)."""
    edits, on = bench.edits, fits.model
    editors: dict[str, tuple[Editor, float]] = {
        "style": (style(fits.schedule)(on, "stylediffusion"), _SHARED),
        "null": (null_text(on, "null_text"), _SHARED),
        "ddim": (GuidedDdim(on.backbone, on.ddim, on.guidance), 1.0),
        "sdedit": (GuidedSdedit(on.backbone, on.ddim, on.guidance), _NOISED),
    }

    def work(name: str) -> Work:
        editor, strength = editors[name]

        def measure() -> list[Setting]:
            fitting = isinstance(editor, ReconstructingEditor)
            result = bench.run(editor, edits, bench.references, (strength,), reconstructed=fitting)
            further = {**_reconstructed(result, edits, fits.lpips), **_unselected(bench, fits, result, strength)}
            return [bench.setting(_TITLES[name], result, strength, further)]

        judge = None if fits.lpips is None else network_fingerprint(fits.lpips)
        return Work(f"closeness-{name}", [edits.digest, settings_of(editor), strength, judge], len(edits), measure)

    measured = bench.measured("closeness", [work(name) for name in editors])
    found = {name: setting for name, (setting,) in zip(editors, measured, strict=True)}
    settings = tuple(found.values())
    return Ablation(
        name="closeness",
        title="Closeness and fit to the text",
        words=(
            "Detailed captions; edits with Prompt-to-Prompt at its shares of 0.6, SDEdit on 0.6 of the steps, DDIM "
            "inversion with swapped words alone. NS-LPIPS is that of the official code: LPIPS of both pictures "
            "darkened where the attention map of the source's changed words is, which are missing where words are "
            "added only."
        ),
        measures=("psnr", "ssim", "lpips", *_MEASURES, "ns_lpips"),
        settings=settings,
        edits=edits.edits,
        evidence=closeness_evidence(found, with_lpips=fits.lpips is not None),
        columns=strip_columns(edits, [setting.name for setting in settings]),
        strips=edit_strips(edits, _SHOWN, settings),
    )


_TITLES = {
    "style": "StyleDiffusion",
    "null": "null-text inversion",
    "ddim": "DDIM inversion, words swapped",
    "sdedit": "SDEdit",
}


def closeness_evidence(found: Mapping[str, Setting], with_lpips: bool) -> dict[str, list[Comparison]]:
    """The comparisons of tables 2 and 3, of the settings `style`, `null`, `ddim` and `sdedit`."""
    ours, null = found["style"], found["null"]
    others = (null, found["sdedit"], found["ddim"])
    evidence = {
        "structure_kept": [difference("structure", other, ours) for other in others],
        "fits_text": [difference("clip", ours, null)],
        "swap_fits_text": [difference("clip", found["ddim"], other) for other in (ours, null, found["sdedit"])],
        "reconstructs": [difference(measure, ours, null) for measure in ("psnr", "ssim")],
    }
    if with_lpips:
        evidence["region_kept"] = [difference("ns_lpips", other, ours) for other in others]
    return evidence


def _reconstructed(result: EditorResult, edits: EditSet, lpips: Lpips | None) -> dict[str, Sequence[float]]:
    """Closeness of each last reconstruction to its picture; nothing where an editor makes none."""
    if not result.reconstructions:
        return {}
    made = from_pictures(result.reconstructions[max(result.reconstructions)]).to(edits.sources.device)
    found: dict[str, Sequence[float]] = {
        "psnr": psnr(made, edits.sources).tolist(),
        "ssim": ssim(made, edits.sources).tolist(),
    }
    return found if lpips is None else {**found, "lpips": lpips(made, edits.sources).tolist()}


def _unselected(bench: EditBench, fits: Fits, result: EditorResult, strength: float) -> dict[str, Sequence[float]]:
    """NS-LPIPS of each edit, nan where the source has no word that the target lacks."""
    if fits.lpips is None:
        return {}
    values: list[float] = []
    made = from_pictures(result.images[strength]).to(bench.edits.sources.device)
    for part in bench.edits.batches(bench.setup.batch):
        heat, said = selected_places(fits.model, part)
        edited = made[len(values) : len(values) + len(part)]
        found = ns_lpips(fits.lpips, part.sources, edited, 1 - heat)
        values += found.where(said.to(found.device), torch.nan).tolist()
    return {"ns_lpips": values}


@torch.no_grad()
def selected_places(on: ManyStepModel, part: EditSet) -> tuple[Tensor, Tensor]:
    """Attention [B, 1, h, w] in [0, 1] to the words that the target lacks, and whether there are any, [B].

    Averaged over DDIM's inversion, as in the official code.
    """
    backbone = on.backbone
    latent = backbone.encode_image(part.sources)
    prompt = backbone.encode_text(part.source_prompts, backbone.size_of(latent))
    maps = AttentionMaps(backbone.map_size(_side(on), latent))
    with controlled(backbone.unet, [Capture(maps)]):
        ddim_pivots(backbone, on.ddim, latent, prompt)
    assert backbone.text is not None, "the backbone was loaded with its text encoder"
    tokens = changed_tokens(backbone.text.tokenizers[0], part.source_prompts, part.target_prompts)
    return token_heat(maps.mean(), tokens), torch.tensor([bool(positions) for positions in tokens])


def _side(on: ManyStepModel) -> int:
    """Side of the attention maps, as in the editors' own fits."""
    return max(8, on.backbone.unet.config.sample_size // 4)


def ablate_one_word(bench: EditBench, fits: Fits) -> Ablation:
    """Edits of StyleDiffusion and of null-text inversion whose prompts are a shape alone (figure 3)."""
    edits, references = bench.of_kinds(ONE_WORD)
    on, given = fits.model, with_one_word(edits)
    editors = [style(fits.schedule)(on, "stylediffusion"), null_text(on, "null_text")]

    def work(number: int, prompts: EditSet, words: str) -> Work:
        editor = editors[number]

        def measure() -> list[Setting]:
            result = bench.run(editor, prompts, references, (_SHARED,))
            return [bench.setting(f"{_TITLES[('style', 'null')[number]]}, {words}", result, _SHARED)]

        return Work(f"one-word-{number}", [prompts.digest, edits.digest, settings_of(editor)], len(edits), measure)

    works = [
        work(number, prompts, words) for prompts, words in ((given, "one word"), (edits, "all")) for number in (0, 1)
    ]
    settings = tuple(setting for (setting,) in bench.measured("one word", works))
    return Ablation(
        name="one_word",
        title="Prompts of one word",
        words=(
            "The source's prompt is the shape of the object that is exchanged, and the target's the new one, beside "
            "the detailed captions. The miniature has never seen so short a text."
        ),
        measures=_MEASURES,
        settings=settings,
        edits=edits.edits,
        evidence=one_word_evidence(*settings[:2]),
        columns=strip_columns(edits, [setting.name for setting in settings]),
        strips=edit_strips(edits, (0, 1, 2, 3), settings),
    )


def one_word_evidence(ours: Setting, null: Setting) -> dict[str, list[Comparison]]:
    """The comparisons of the claim, of edits with one word each."""
    kept = [difference(measure, ours, null) for measure in ("psnr_outside", "kept")]
    return {"one_word": [above("changed", ours, 0.5), *kept]}


def with_one_word(edits: EditSet) -> EditSet:
    """`edits` of an object's shape with that shape as the source's prompt, and the new one as the target's."""
    pairs = [
        next((a.shape, b.shape) for a, b in zip(edit.source.objects, edit.target.objects, strict=True) if a != b)
        for edit in edits.scenes
    ]
    sources, targets = zip(*pairs, strict=True)
    return replace(edits, source_prompts=sources, target_prompts=targets)


def ablate_word_maps(bench: EditBench, fits: Fits) -> Ablation:
    """How much of the attention to an object's word lies on it: DDIM inversion's, fitted with and without L_attn."""
    edits, on = bench.edits, fits.model
    names = ("DDIM inversion", "StyleDiffusion", "StyleDiffusion without L_attn")

    def measure() -> list[Setting]:
        values: dict[str, list[float]] = {name: [] for name in names}
        for part in edits.batches(bench.setup.batch):
            masks = torch.stack([torch.from_numpy(object_mask(edit.source, 0)).float() for edit in part.scenes])
            for name, heat in zip(names, word_maps(on, part, fits.schedule), strict=True):
                values[name] += [
                    share if _named_once(edit) else torch.nan
                    for share, edit in zip(on_object(heat, masks), part.scenes, strict=True)
                ]
            bench.setup.kept.tick(len(part))
        return [Setting(name, {"on_object": values[name]}) for name in names]

    decided_by = [edits.digest, on.ddim.timesteps, on.guidance, repr(fits.schedule)]
    (settings,) = bench.measured("attention to a word", [Work("word-maps", decided_by, len(edits), measure)])
    return Ablation(
        name="attention",
        title="The attention map of a word",
        words=(
            "Attention to the word of the first object's shape, averaged over steps, layers and heads: the share of it "
            "that lies on the object. Scenes with two objects of the same shape are left out."
        ),
        measures=("on_object",),
        settings=settings,
        edits=edits.edits,
        evidence=word_map_evidence(*settings),
    )


def word_map_evidence(ddim: Setting, ours: Setting, without: Setting) -> dict[str, list[Comparison]]:
    """The comparisons of the claim."""
    return {"attention_map": [difference("on_object", ours, other) for other in (without, ddim)]}


def _named_once(edit: Edit) -> bool:
    """Whether the first object's shape is no other's."""
    shapes = [item.shape for item in edit.source.objects]
    return shapes.count(shapes[0]) == 1


def on_object(heat: Tensor, masks: Tensor) -> list[float]:
    """Share of each map [B, 1, h, w] that lies in a mask [B, H, W] in [0, 1]."""
    near = functional.interpolate(masks[:, None], heat.shape[-2:], mode="area").to(heat)
    return ((heat * near).sum((1, 2, 3)) / heat.sum((1, 2, 3)).clamp_min(1e-12)).tolist()


def word_maps(on: ManyStepModel, part: EditSet, schedule: FitSchedule) -> tuple[Tensor, ...]:
    """Maps [B, 1, h, w] of the first object's shape: at DDIM's pivots, and as fitted with and without L_attn."""
    backbone, ddim = on.backbone, on.ddim
    assert on.tokens is not None, "StyleDiffusion needs CLIP's tokens"
    assert backbone.text is not None, "the backbone was loaded with its text encoder"
    latent = backbone.encode_image(part.sources)
    prompt = backbone.encode_text(part.source_prompts, backbone.size_of(latent))
    null, pivots = matching(backbone.encode_text([""]), prompt), ddim_pivots(backbone, ddim, latent, prompt)
    watched = GuidedStep(backbone, ddim, StyleObjective(on.guidance, attention_side=_side(on)))
    tokens = [
        named_tokens(backbone.text, text, edit.source.objects[0].shape)
        for text, edit in zip(part.source_prompts, part.scenes, strict=True)
    ]
    paths: list[AttentionMaps] = [AttentionMaps(backbone.map_size(_side(on), latent)) for _ in range(3)]
    for path, weight in zip(paths[1:], (watched.objective.attention_weight, 0.0), strict=True):
        objective = replace(watched.objective, attention_weight=weight)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            step = GuidedStep(backbone, ddim, objective)
            fitted = fit_modulations(step, on.tokens(part.sources), pivots, prompt, null, schedule)
        _follow(watched, pivots, prompt, null, fitted.modulations, path, paths[0] if path is paths[1] else None)
    return tuple(token_heat(path.mean(), tokens) for path in paths)


@torch.no_grad()
def _follow(
    step: GuidedStep,
    pivots: Tensor,
    prompt: Prompt,
    null: Prompt,
    modulations: Sequence[Modulation],
    into: AttentionMaps,
    at_pivots: AttentionMaps | None,
) -> None:
    """Sample with fitted values, and add the maps on the way, and those at DDIM's pivots."""
    x = pivots[0]
    for number, modulation in enumerate(modulations):
        steps = torch.full((len(x),), number, device=x.device)
        reference = step.reference(x, pivots[number], steps, prompt, null)
        x, maps = step.mapped(x, steps, prompt, reference.unconditional, modulation)
        for layer in maps.values():
            into.add(layer.float().mean(1))
        if at_pivots is not None:
            for layer in reference.maps.values():
                at_pivots.add(layer.mean(1))
