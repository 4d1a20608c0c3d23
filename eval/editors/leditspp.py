"""LEDITS++ (Brack et al. 2024) by diffusers' own pipelines around the backbone's parts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    LEditsPPPipelineStableDiffusionXL,
)
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.inpaint import stock_ddim
from eval.editors.randomness import image_keys, image_seed
from models.backbone import Backbone
from models.text import ClipText, DualClipText
from models.words import PUNCTUATION, changed_words, word_spans


@dataclass(frozen=True)
class Inverted:
    """An inverted image as the pipeline has it: the noisiest latent [1, C, h, w], each step's noise [n, 1, C, h, w]."""

    start: Tensor
    noises: Tensor


class LeditsPP:
    """Edit-friendly inversion in SDE-DPM-Solver++ steps of second order, then guidance to each concept inside its mask.

    Concepts are the runs of words that only one of the prompts has: to the target's, away from the source's. A mask is
    the intersection of where the concept's attention and where its guidance is strong. The source is not described to
    the model (`source_prompt` empty, as in diffusers' example). Strength is the guidance's scale.

    Args:
        backbone: the model whose parts make the pipeline, Stable Diffusion's or SDXL's.
        num_steps: number of steps of the inversion, after those that are skipped.
        skip: steps noisier than those, as a share of `num_steps`; `scale` and `threshold` of the edit. As in
            diffusers' example; without those its pipelines take 0.15, 5 and 0.9.
        seed: seed of the inversion's noises.

    Raises:
        ValueError: parts that the pipelines cannot use.
    """

    name = "leditspp"
    strengths = (5.0, 7.5, 10.0, 15.0)

    def __init__(
        self,
        backbone: Backbone,
        num_steps: int = 50,
        skip: float = 0.1,
        scale: float = 10.0,
        threshold: float = 0.75,
        seed: int = 0,
    ) -> None:
        _require(backbone)
        self.backbone = backbone
        self.num_steps = num_steps
        self.skip = skip
        self.scale = scale
        self.threshold = threshold
        self.seed = seed
        self.networks = networks_of(backbone)
        self.pipeline = _pipeline(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "num_steps": self.num_steps,
            "skip": self.skip,
            "scale": self.scale,
            "threshold": self.threshold,
            "seed": self.seed,
        }

    @torch.no_grad()
    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """Each image by itself: the pipeline's masks know batches of one."""
        found = []
        for image, key in zip(images.split(1), image_keys(images), strict=True):
            generator = torch.Generator().manual_seed(image_seed(key, self.name, self.seed))
            with self._own_attention():
                self.pipeline.invert(
                    (image + 1) / 2, num_inversion_steps=self.num_steps, skip=self.skip, generator=generator
                )
            found.append(Inverted(self.pipeline.init_latents, self.pipeline.zs))
        return InvertedImages(tuple(prompts), {}, tuple(found))

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The edit, or the reconstruction where no word has changed."""
        scale = self.scale if request.strength is None else request.strength
        pairs = zip(inversion.prompts, request.prompt, strict=True)
        rows = [
            self._sample(found, *concepts(source, target), scale)
            for found, (source, target) in zip(inversion.state, pairs, strict=True)
        ]
        return decode_latents(self.backbone, torch.cat(rows))

    @torch.no_grad()
    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The latents without any concept."""
        return (torch.cat([self._sample(found, [], [], self.scale) for found in inversion.state]),)

    def _sample(self, found: Inverted, added: list[str], removed: list[str], scale: float) -> Tensor:
        """The latent [1, C, h, w]; the pipeline edits what it has inverted last, so it is given that back."""
        self.pipeline.init_latents, self.pipeline.zs, self.pipeline.batch_size = found.start, found.noises, 1
        with self._own_attention():
            return self.pipeline(
                editing_prompt=[*added, *removed] or None,
                reverse_editing_direction=[False] * len(added) + [True] * len(removed),
                edit_guidance_scale=scale,
                edit_threshold=self.threshold,
                use_intersect_mask=bool(added or removed),
                output_type="latent",
            ).images

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """The pipelines leave their attention processors in the UNet; after the block it has its own again."""
        unet = self.backbone.unet
        processors = unet.attn_processors
        try:
            yield
        finally:
            unet.set_attn_processor(processors)


def concepts(source: str, target: str) -> tuple[list[str], list[str]]:
    """Runs of words that only `target` has, and those that only `source` has.

    "a red circle", "a blue circle on grass" -> ["blue", "on grass"], ["red"]
    """
    removed, added = changed_words(source, target)
    return _runs(target, added), _runs(source, removed)


def _runs(text: str, indices: Sequence[int]) -> list[str]:
    """The words of `text` at `indices`, neighbours together, without the punctuation around them."""
    if not indices:
        return []
    runs = [[indices[0]]]
    for before, after in pairwise(indices):
        if after == before + 1:
            runs[-1].append(after)
        else:
            runs.append([after])
    spans = word_spans(text)
    return [text[spans[run[0]][0] : spans[run[-1]][1]].strip(PUNCTUATION) for run in runs]


def _require(backbone: Backbone) -> None:
    """Raises ValueError if the pipelines cannot use the backbone."""
    unet = backbone.unet
    sides = {number for number, block in enumerate(unet.down_blocks) if hasattr(block, "attentions")}
    sides |= {number for number, block in enumerate(reversed(unet.up_blocks)) if hasattr(block, "attentions")}
    if 2 not in sides:
        raise ValueError(
            "LEDITS++ takes its masks from attention at a quarter of the latent's side, the third level of the UNet; "
            f"this one has {len(unet.down_blocks)} levels, {unet.config.down_block_types}"
        )
    if backbone.image_size % 32:
        raise ValueError(
            f"LEDITS++ edits pictures whose sides 32 divides; the backbone's have {backbone.image_size} px"
        )
    assert backbone.text is not None, "the backbone was loaded without its text encoders"
    dtypes = {backbone.vae.dtype, unet.dtype, *(encoder.dtype for encoder in backbone.text.encoders)}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"LEDITS++ needs all parts in one dtype, not {names}; load the backbone with dtype=vae_dtype")


def _pipeline(
    backbone: Backbone,
) -> LEditsPPPipelineStableDiffusion | LEditsPPPipelineStableDiffusionXL:
    """The stock pipeline of the backbone's parts."""
    scheduler = DPMSolverMultistepScheduler.from_config(
        stock_ddim(backbone.schedule).config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    text, parts = backbone.text, {"vae": backbone.vae, "unet": backbone.unet, "scheduler": scheduler}
    if isinstance(text, DualClipText):
        pipeline = LEditsPPPipelineStableDiffusionXL(
            text_encoder=text.encoders[0],
            text_encoder_2=text.encoders[1],
            tokenizer=text.tokenizers[0],
            tokenizer_2=text.tokenizers[1],
            add_watermarker=False,
            **parts,
        )
    else:
        assert isinstance(text, ClipText)
        pipeline = LEditsPPPipelineStableDiffusion(
            text_encoder=text.encoders[0],
            tokenizer=text.tokenizers[0],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
