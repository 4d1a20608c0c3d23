"""Ablation: one noise under a caption and the edited caption, short and detailed, by the generator and its teacher.

Figure 3 of TurboEdit's paper with its second contribution: no picture is inverted here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.world.description import LAYOUTS, attribute_targets
from data.world.edits import Edit, changed_attributes
from data.world.render import place_mask
from eval.ablations.bench import Ablation, Bench, Setting, Work, above, difference, edit_strips, strip_columns
from eval.ablations.prompts import SAID_BRIEFLY, with_short_prompts
from eval.claims.judging import Comparison
from eval.editors.few_steps import decode_latents, generator_of
from eval.editors.randomness import image_keys, image_noise
from eval.harness.exports import load_scene_backbone
from eval.harness.fingerprints import backbone_settings
from eval.harness.options import Dtype, folder_or_hub_id
from eval.metrics.pixels import masked_psnr
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import Reading, kept_share, scene_readings
from eval.scene_edits.result import pixels
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching
from models.generator import FewStepGenerator

_SHOWN = (0, 1, 2, 3, 4, 8)
_MEASURES = ("psnr_outside", "kept")


@dataclass(frozen=True)
class Teacher:
    """The model from which the generator was distilled, as it is sampled."""

    backbone: Backbone
    ddim: Ddim
    guidance: float


def load_teacher(
    name: str, student: Backbone, num_steps: int, guidance: float, device: torch.device, dtype: Dtype
) -> Teacher:
    """Load the teacher of a folder or hub id.

    Raises:
        ValueError: It has not the generator's latents, so it cannot have its noises, or no steps of DDIM.
    """
    backbone = load_scene_backbone(folder_or_hub_id(name, "--teacher.path"), device, dtype)
    if backbone.latent_channels != student.latent_channels:
        raise ValueError(
            f"--teacher.path {name} has latents of {backbone.latent_channels} channels, expected the generator's "
            f"{student.latent_channels}; give the model from which the generator was distilled"
        )
    return Teacher(backbone, Ddim(backbone.schedule, num_steps), guidance)


@dataclass(frozen=True)
class Sampler:
    """A way to make latents of texts from one noise [B, C, h, w] a step.

    Args:
        name: Name in tables.
        backbone: Networks that make the pictures.
        sample: Latents [B, C, h, w] of noises and texts.
        settings: All that decides the pictures beside the backbone, as JSON.
    """

    name: str
    backbone: Backbone
    sample: Callable[[Sequence[Tensor], Sequence[str]], Tensor]
    settings: tuple[float, ...]


def few_step_sampler(name: str, generator: FewStepGenerator) -> Sampler:
    """All of a generator's steps, without guidance."""

    def sample(noises: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        prompt = generator.backbone.encode_text(texts, generator.backbone.size_of(noises[0]))
        return generator.sample(noises, prompt)[-1]

    return Sampler(name, generator.backbone, sample, tuple(generator.timesteps))


def guided_sampler(name: str, teacher: Teacher) -> Sampler:
    """Guided DDIM, which has only the first noise."""
    backbone, ddim = teacher.backbone, teacher.ddim

    def sample(noises: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        prompt = backbone.encode_text(texts, backbone.size_of(noises[0]))
        null = matching(backbone.encode_text([""]), prompt)

        def noise(x: Tensor, step: int) -> Tensor:
            return guided_noise(backbone, x, ddim.timesteps[step], prompt, null, teacher.guidance)

        return ddim.denoise(noises[0], noise)[-1]

    return Sampler(name, backbone, sample, (*ddim.timesteps, teacher.guidance))


def samplers_of(student: FewStepGenerator, teacher: Teacher | None) -> dict[str, Sampler]:
    """The ways that are compared: by the generator in one step and in all, by the teacher in as many and guided."""
    count = len(student.timesteps)
    single = FewStepGenerator(student.backbone, student.timesteps[:1])
    found = {
        "single": few_step_sampler("generator, 1 step", single),
        "student": few_step_sampler(f"generator, {count} steps", student),
    }
    if teacher is not None:
        plain = FewStepGenerator(teacher.backbone, student.timesteps)
        found["teacher"] = few_step_sampler(f"teacher, {count} steps, no guidance", plain)
        found["guided"] = guided_sampler(f"teacher, {len(teacher.ddim)} guided steps", teacher)
    return found


def ablate_disentangled(bench: Bench, teacher: Teacher | None, seed: int) -> Ablation:
    """Pairs of pictures from the same noise, in every way with short and with detailed captions."""
    edits, _ = bench.of_kinds(SAID_BRIEFLY)
    samplers = samplers_of(generator_of(bench.pipeline), teacher)
    lengths = {"short": with_short_prompts(edits), "detailed": edits}
    works = {
        (way, length): _work(bench, sampler, length, given, seed)
        for way, sampler in samplers.items()
        for length, given in lengths.items()
    }
    measured = bench.measured("the same noise", list(works.values()))
    found = {key: setting for key, (setting,) in zip(works, measured, strict=True)}
    settings = tuple(found.values())
    return Ablation(
        name="disentangled",
        title="The same noise with an edited caption",
        words=(
            f"No picture is inverted: one noise makes a picture of a caption and one of the edited caption "
            f"({', '.join(kind.replace('_', ' ') for kind in SAID_BRIEFLY)}), which stand side by side below. Outside "
            "is outside of where an object can be at the place at which the reader finds the changed one, before and "
            "after; kept counts the attributes of the first picture, said by the caption or not. A blurred picture "
            "differs less from its like."
        ),
        measures=("changed", "kept", "psnr_outside"),
        settings=settings,
        edits=edits.edits,
        evidence=disentangled_evidence(found),
        comparisons=_further(found),
        columns=strip_columns(edits, [setting.name for setting in settings]),
        strips=edit_strips(edits, _SHOWN, settings),
    )


def _work(bench: Bench, sampler: Sampler, length: str, given: EditSet, seed: int) -> Work:
    """One way with captions of one length."""

    def measure() -> list[Setting]:
        values: dict[str, list[float]] = {"changed": [], "kept": [], "psnr_outside": []}
        pictures: list[np.ndarray] = []
        for part in given.batches(bench.setup.batch):
            before, after = pairs_of(sampler, part, bench.pipeline.timesteps, seed)
            for measure, found in pair_values(bench, part.scenes, before, after).items():
                values[measure] += found
            pictures += [np.concatenate(pair, 1) for pair in zip(pixels(before), pixels(after), strict=True)]
            bench.setup.kept.tick(len(part))
        return [Setting(f"{sampler.name}, {length}", values, pictures)]

    decided_by = [given.digest, sampler.name, backbone_settings(sampler.backbone), sampler.settings, seed]
    return Work(f"disentangled-{length}", decided_by, len(given), measure)


@torch.no_grad()
def pairs_of(sampler: Sampler, part: EditSet, timesteps: Sequence[float], seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] of the captions and of the edited ones; a row's noises are the same whoever samples."""
    keys = image_keys(part.sources)
    like = sampler.backbone.encode_image(part.sources)
    noises = [image_noise(keys, f"same noise {number}", seed, like) for number in range(len(timesteps))]
    before, after = (
        decode_latents(sampler.backbone, sampler.sample(noises, texts))
        for texts in (part.source_prompts, part.target_prompts)
    )
    return before, after


def pair_values(bench: Bench, edits: Sequence[Edit], before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """What is measured of each pair of pictures [B, 3, H, W]; `psnr_outside` is nan where no object is found."""
    reader = bench.reader
    readings = list(zip(scene_readings(reader, before), scene_readings(reader, after), strict=True))
    masks = [_changed_places(edit, *found) for edit, found in zip(edits, readings, strict=True)]
    outside = torch.from_numpy(~np.stack(masks))[:, None].to(before.device)
    return {
        "changed": [float(says_target(edit, found)) for edit, (_, found) in zip(edits, readings, strict=True)],
        "kept": [kept_share(edit, found, first) for edit, (first, found) in zip(edits, readings, strict=True)],
        "psnr_outside": masked_psnr(after, before, outside).tolist(),
    }


def says_target(edit: Edit, reading: Reading) -> bool:
    """Whether a picture of the target's caption shows what the edit changed.

    For an object that comes or goes that is how many there are: a short caption does not say where.
    """
    target, changed = attribute_targets(edit.target), changed_attributes(edit)
    if "layout" in changed:
        return (reading["b_shape"] >= 0) == (target["b_shape"] >= 0)
    return all(reading[name] == target[name] for name in changed)


def _changed_places(edit: Edit, before: Reading, after: Reading) -> np.ndarray:
    """Mask [H, W] of where the changed object can be in either picture; all of it where the background changes."""
    places = set()
    for scene, other, reading in ((edit.source, edit.target, before), (edit.target, edit.source, after)):
        for number, item in enumerate(scene.objects):
            if item not in other.objects:
                places.add(_place(reading, number))
    if edit.source.background != edit.target.background or None in places:
        return np.ones_like(place_mask(LAYOUTS[0]))
    return np.any([place_mask(place) for place in places if place is not None], 0)


def _place(reading: Reading, number: int) -> str | None:
    """The place of object `number` as read; None where there are fewer."""
    places = LAYOUTS[reading["layout"]].split("+")
    return places[number] if number < len(places) else None


def disentangled_evidence(found: Mapping[tuple[str, str], Setting]) -> dict[str, list[Comparison]]:
    """The comparisons of both claims, of settings by way (see `samplers_of`) and length of the captions.

    Distillation is asked for in the figure's single step beside guided sampling, and in as many steps beside the
    teacher's own, where the weights alone differ.
    """
    single = found["single", "detailed"]
    evidence = {
        "detailed_disentangle": [
            above("changed", single, 0.5),
            *(difference(measure, single, found["single", "short"]) for measure in _MEASURES),
        ]
    }
    if ("guided", "detailed") in found:
        pairs = (("single", "guided"), ("student", "teacher"))
        evidence["distillation_disentangles"] = [
            difference(measure, found[ours, "detailed"], found[theirs, "detailed"])
            for ours, theirs in pairs
            for measure in _MEASURES
        ]
    return evidence


def _further(found: Mapping[tuple[str, str], Setting]) -> tuple[Comparison, ...]:
    """What details bring in each way, and how much more of it distillation does."""
    ways = list(dict.fromkeys(way for way, _ in found))
    gains = {
        (way, measure): difference(measure, found[way, "detailed"], found[way, "short"])
        for way in ways
        for measure in _MEASURES
    }
    pairs = (("single", "guided"), ("student", "teacher"))
    more = [
        Comparison(
            f"{gains[ours, measure].words}, less the same of {found[theirs, 'detailed'].name.rsplit(',', 1)[0]}",
            gains[ours, measure].unit,
            [a - b for a, b in zip(gains[ours, measure].values, gains[theirs, measure].values, strict=True)],
        )
        for ours, theirs in pairs
        for measure in _MEASURES
        if theirs in ways
    ]
    return (*gains.values(), *more)
