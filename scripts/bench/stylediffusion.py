"""StyleDiffusion's fit beside that of the official code."""

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from data.jobs.device import choose_device
from data.world.edits import EDIT_KINDS
from eval.scene_edits.edit_set import sample_edit_set
from models.attention import attention_layers
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots, matching, predict_noise
from models.options import FitSchedule, StyleObjective
from models.stylediffusion import GuidedStep, fit_modulations
from models.text import Prompt
from models.value_mapper import Modulation, TokenMapper


@dataclass(frozen=True)
class Case:
    """Images to fit, and the settings of the fit."""

    backbone: Backbone
    ddim: Ddim
    tokens: ImageTokens
    objective: StyleObjective
    schedule: FitSchedule
    images: Tensor
    pivots: Tensor
    prompt: Prompt
    null: Prompt


class OfficialAttention:
    """Explicit softmax in every layer; in cross attention the values come from `values`, made anew in each layer."""

    def __init__(
        self, values: Callable[[Tensor], Tensor] | None, side: int, name: str, store: dict[str, Tensor]
    ) -> None:
        self.values, self.side, self.name, self.store = values, side, name, store

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attention whose values are mapped, with explicit softmax maps, as the official code computes it."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        cross = encoder_hidden_states is not None
        source = self.values(context) if cross and self.values else context
        query, key, value = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(source))
        )
        maps = attn.get_attention_scores(query, key)
        if cross and hidden_states.shape[1] == self.side**2 and not self.name.startswith("mid"):
            self.store[self.name] = maps
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(maps @ value)))


def official_fit(case: Case, cached_clip: bool) -> list[float]:
    """One image after the other as the official code does it; the mean over images of each step's last loss."""
    found = [_official_image(case, row, cached_clip) for row in range(len(case.images))]
    return [statistics.fmean(losses) for losses in zip(*found, strict=True)]


def _official_image(case: Case, row: int, cached_clip: bool) -> list[float]:
    part = slice(row, row + 1)
    image, prompt, null, pivots = case.images[part], case.prompt[part], case.null[part], case.pivots[:, part]
    torch.manual_seed(0)
    text = prompt.embeds.shape[1:]
    mapper = TokenMapper(case.tokens.shape, (text[0], text[1]), "modulate").to(image.device)
    once = case.tokens(image)

    def values(context: Tensor) -> Tensor:
        modulation: Modulation = mapper(once if cached_clip else case.tokens(image))
        return modulation(context)

    def evaluate(x: Tensor, t: int, prompt: Prompt, mapped: bool) -> tuple[Tensor, dict[str, Tensor]]:
        store: dict[str, Tensor] = {}
        for name, layer in attention_layers(case.backbone.unet).items():
            side = case.objective.attention_side
            layer.set_processor(OfficialAttention(values if mapped else None, side, name, store))
        return predict_noise(case.backbone, x, t, prompt), store

    x, last = pivots[0], []
    for step, t in enumerate(case.ddim.timesteps):
        iterations, lr, _ = case.schedule.at(step)
        optimizer = torch.optim.Adam(mapper.parameters(), lr)
        with torch.no_grad():
            unconditional, _ = evaluate(x, t, null, mapped=False)
            _, targets = evaluate(pivots[step], t, prompt, mapped=False)

        def guided(
            x: Tensor = x, t: int = t, step: int = step, null_noise: Tensor = unconditional
        ) -> tuple[Tensor, Any]:
            noise, maps = evaluate(x, t, prompt, mapped=True)
            noise = null_noise + case.objective.guidance * (noise - null_noise)
            return case.ddim.move(x, noise, step, step + 1), maps

        for _ in range(iterations):
            latent, maps = guided()
            loss = (latent - pivots[step + 1]).square().mean()
            loss = loss + sum((maps[name] - targets[name]).square().mean() for name in targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last.append(loss.item())
        with torch.no_grad():
            x, _ = guided()
    return last


def our_fit(case: Case) -> list[float]:
    """The project's: CLIP once, maps where they are compared, images side by side."""
    torch.manual_seed(0)
    step = GuidedStep(case.backbone, case.ddim, case.objective)
    tokens = case.tokens(case.images)
    return fit_modulations(step, tokens, case.pivots, case.prompt, case.null, case.schedule).losses.mean(1).tolist()


def one_by_one(case: Case) -> list[float]:
    """`our_fit` of one image after the other."""
    found = []
    for row in range(len(case.images)):
        part = slice(row, row + 1)
        images, pivots = case.images[part], case.pivots[:, part]
        found.append(
            our_fit(replace(case, images=images, pivots=pivots, prompt=case.prompt[part], null=case.null[part]))
        )
    return [statistics.fmean(losses) for losses in zip(*found, strict=True)]


SIDES: dict[str, Callable[[Case], list[float]]] = {
    "official": lambda case: official_fit(case, cached_clip=False),
    "official_clip_once": lambda case: official_fit(case, cached_clip=True),
    "ours_one_by_one": one_by_one,
    "ours": our_fit,
}

SLOW = 1e-4
"""Learning rate at which the sides have to agree; the official one, 1e-2, makes rounding grow from step to step."""


def measure_fits(
    backbone: str,
    clip: str,
    images: int,
    steps: int,
    iterations: int,
    rounds: int,
    attention_side: int,
    guidance: float,
    device: str,
    only: Literal["official", "official_clip_once", "ours_one_by_one", "ours"] | None,
    variant: str | None,
) -> list[dict[str, Any]]:
    """Measure the fit of some images on both sides.

    Raises:
        ValueError: The two sides do not reach the same losses.
    """
    options = dict(locals())
    device = choose_device(device).type
    case = _case(
        Backbone.load(backbone, device=device, variant=variant),
        ImageTokens.load(clip, device),
        images,
        steps,
        iterations,
        StyleObjective(guidance=guidance, attention_side=attention_side),
    )
    if only is not None:
        return [{"name": "peak_memory", "value": _measure(case, only).peak_gb, "unit": "GB"}]
    slow = replace(case, schedule=replace(case.schedule, lr=SLOW))
    exact = _difference({name: _measure(slow, name).losses for name in SIDES})
    if exact > 1e-3:
        raise ValueError(f"at a learning rate of {SLOW:g} losses of the sides differ by a share of {exact:.5f}")
    found: dict[str, list[FitRun]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name in SIDES:
            found[name].append(_measure(case, name))
    times = {name: statistics.median(one.seconds for one in measured) for name, measured in found.items()}
    losses = {name: measured[-1].losses for name, measured in found.items()}
    for name in SIDES:
        print(f"{name:20} {times[name]:.2f} s an image, losses {_short(losses[name])}")
    mean = _difference({name: [statistics.fmean(of_steps)] for name, of_steps in losses.items()})
    if mean > 0.03:
        raise ValueError(f"the sides end at other losses, by a share of {mean:.3f} in the mean: no time is comparable")
    peaks = {name: measured[-1].peak_gb for name, measured in found.items()}
    if device == "cpu":  # a process's peak never falls, so each side gets one of its own
        peaks = {name: _peak_alone(name, options) for name in ("official", "ours")}
    return [
        _result("stylediffusion_fit_vs_official", times["ours"], "s/image", times["official"]),
        _result("stylediffusion_fit_one_by_one_vs_official", times["ours_one_by_one"], "s/image", times["official"]),
        _result("stylediffusion_clip_once_vs_every_layer", times["official_clip_once"], "s/image", times["official"]),
        _result("stylediffusion_fit_peak_memory", peaks["ours"], "GB", peaks["official"]),
        {"name": "difference_of_losses", "value": round(exact, 7), "unit": f"share of a step's loss, at lr {SLOW:g}"},
        {"name": "difference_of_mean_losses", "value": round(mean, 5), "unit": "share of the mean loss"},
    ]


@dataclass(frozen=True)
class FitRun:
    """Run of one side: losses by step, seconds an image, peak of memory in GB."""

    losses: list[float]
    seconds: float
    peak_gb: float


def _measure(case: Case, name: str) -> FitRun:
    """Run a side; the UNet has its own processors again after it."""
    layers = attention_layers(case.backbone.unet)
    stock = {path: layer.processor for path, layer in layers.items()}
    on_gpu = case.images.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    losses = SIDES[name](case)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / len(case.images)
    for path, layer in layers.items():
        layer.set_processor(stock[path])
    return FitRun(losses, seconds, _peak_bytes(on_gpu) / 1e9)


def _difference(losses: Mapping[str, Sequence[float]]) -> float:
    """The largest share by which a loss of any side differs from the official one."""
    return max(abs(a / b - 1) for found in losses.values() for a, b in zip(found, losses["official"], strict=True))


def _peak_alone(name: str, options: Mapping[str, Any]) -> float:
    """Peak of memory in GB of one side in a process of its own."""
    words = [f"--{key}={value}" for key, value in {**options, "rounds": 1, "only": name}.items() if value is not None]
    command = [sys.executable, "-m", "scripts.bench_stylediffusion", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["results"][0]["value"]


def _case(
    backbone: Backbone, tokens: ImageTokens, count: int, steps: int, iterations: int, objective: StyleObjective
) -> Case:
    scenes = sample_edit_set("test", math.ceil(count / len(EDIT_KINDS)))
    images = F.interpolate(scenes.sources[:count], backbone.image_size, mode="bicubic").clamp(-1, 1)
    images = images.to(backbone.unet.device)
    prompt = backbone.encode_text(scenes.source_prompts[:count])
    ddim = Ddim(backbone.schedule, steps)
    pivots = ddim_pivots(backbone, ddim, backbone.encode_image(images), prompt)
    # Nothing stops early, so that both sides make the same iterations.
    schedule = FitSchedule(iterations=iterations, stop=0.0, stop_growth=0.0)
    null = matching(backbone.encode_text([""]), prompt)
    return Case(backbone, ddim, tokens, objective, schedule, images, pivots, prompt, null)


def _result(name: str, value: float, unit: str, reference: float) -> dict[str, Any]:
    ratio = round(reference / value, 3)
    return {"name": name, "value": round(value, 4), "unit": unit, "reference": round(reference, 4), "ratio": ratio}


def _short(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.2e}" for loss in losses)


def _peak_bytes(on_gpu: bool) -> int:
    """Peak of allocated bytes on CUDA, of resident bytes since the process began on a CPU."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
