"""StyleDiffusion as a diffusers pipeline: an amortised mapping network inverts an image, Prompt-to-Prompt edits it.

An exported folder carries this file and its siblings, so stock diffusers loads it with `trust_remote_code=True` and
nothing of the project installed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPVisionModel

# diffusers carries only the siblings that this file names; some of these stand behind the others.
from .attention import Rule  # noqa: F401
from .attention_edits import injection  # noqa: F401
from .attention_maps import AttentionMaps  # noqa: F401
from .backbone import Backbone  # noqa: F401
from .carried_code import carry_code  # noqa: F401
from .clip import ClipPixels, ImageTokens
from .ddim import Ddim, ddim_pivots, matching
from .families import family_of  # noqa: F401
from .inversion_files import read_inversion  # noqa: F401
from .local_blend import BlendWords, LocalBlend
from .options import FitSchedule, Into, StyleObjective
from .own_dtype import GradientScale  # noqa: F401
from .pictures import Images, one_for_each
from .pipeline_base import PipelineBase, check_output_type, one_at_a_time
from .pipeline_files import PipelineFiles  # noqa: F401
from .precision import widest  # noqa: F401
from .prompt_to_prompt import Sharing, Trajectory, edit, reconstruct
from .quantized import QuantizedLinear  # noqa: F401
from .schedule import NoiseSchedule
from .shapes import Cutout  # noqa: F401
from .style_transfer import transfer_style
from .stylediffusion import GuidedStep, amortised, fit_modulations
from .stylediffusion_inversion import StyleDiffusionInversion
from .text import ClipText
from .unet_family import UNetBackbone  # noqa: F401
from .upright import upright_rgb  # noqa: F401
from .value_mapper import AmortisedMapper, Modulation
from .weight_files import only_variant  # noqa: F401
from .widening import copied  # noqa: F401
from .word_alignment import refine_alignment, reweight
from .words import has_word


class StyleDiffusionPipeline(PipelineBase, DiffusionPipeline):
    """Inversion and editing of real images with a trained mapping network on a frozen Stable Diffusion.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: Stable Diffusion's, as in diffusers.
        image_encoder: CLIP's vision model, whose tokens the network maps.
        mapper: the network.
        num_steps, steps_offset: number of DDIM's steps and offset of its timesteps, as in training.
        guidance: guidance scale of sampling, as in training.
        attention_weight, attention_side, attention_blocks, into: options of the objective; `into` says what of cross
            attention takes the mapped embeddings, values in StyleDiffusion. `attention_side` is that of latents of the
            UNet's own size.
        image_mean, image_std: mean and standard deviation with which the image encoder's pictures are normalised.
    """

    _exclude_from_cpu_offload: ClassVar[list[str]] = ["mapper"]  # torch's attention reads its weights past any hook
    model_cpu_offload_seq = "text_encoder->image_encoder->mapper->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: Any,
        tokenizer: Any,
        unet: UNet2DConditionModel,
        scheduler: Any,
        image_encoder: CLIPVisionModel,
        mapper: AmortisedMapper,
        num_steps: int = 30,
        steps_offset: int = 1,
        guidance: float = 7.5,
        attention_weight: float = 1.0,
        attention_side: int = 16,
        attention_blocks: Sequence[str] = ("down_blocks", "up_blocks"),
        into: Into = "values",
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            mapper=mapper,
        )
        self.register_to_config(
            num_steps=num_steps,
            steps_offset=steps_offset,
            guidance=guidance,
            attention_weight=attention_weight,
            attention_side=attention_side,
            attention_blocks=list(attention_blocks),
            into=into,
            image_mean=list(image_mean),
            image_std=list(image_std),
        )

    @property
    def ddim(self) -> Ddim:
        """The steps of inversion and sampling."""
        schedule = NoiseSchedule.from_scheduler(self.scheduler)
        return Ddim(schedule, self.config.num_steps, self.config.steps_offset)

    def __call__(
        self,
        image: Images,
        prompt: str | Sequence[str],
        target: str | Sequence[str],
        refine: int = 0,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
        **options: Any,
    ) -> Any:
        """Invert image(s) and edit them by a target description, in one call.

        Args:
            image, prompt, refine, height, width: arguments of `invert`.
            target: the prompt of `edit`; its further options go by their names.
            output_type: "pil", "np", "pt" or "latent", as in diffusers (`decode`).

        Raises:
            ValueError: see `invert` and `edit`.
        """
        check_output_type(output_type)
        inversion = self.invert(image, prompt, refine, height=height, width=width)
        return self.edit(inversion, target, output_type=output_type, **options)

    @torch.no_grad()
    @one_at_a_time
    def invert(
        self,
        image: Images,
        prompt: str | Sequence[str],
        refine: int = 0,
        values: Sequence[Modulation] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> StyleDiffusionInversion:
        """DDIM's pivots for where sampling starts, the mapping network for the values of every step.

        Args:
            image: picture(s), or a tensor [B, 3, H, W] in [-1, 1].
            prompt: the description of each image, or one for all.
            refine: iterations of per-image fitting at the first step (they fall as in the official code's schedule),
                which add to what the network gives; 0 takes the network's word.
            values: values of every step, in the place of the network's, such as train.stylediffusion_fit has found.
            height, width: size in pixels in which the networks see the image; by default it keeps its aspect at about
                the area for which they were made (`preprocess`).

        Raises:
            ValueError: the number of prompts is not that of the images, that of the values not that of the steps, or
                refinement in float16.
        """
        backbone, ddim, device = self.backbone, self.ddim, self._compute_device
        pictures = self.preprocess(image, height, width)
        texts = one_for_each(prompt, len(pictures))
        latent = backbone.encode_image(pictures)
        embedded = backbone.encode_text(texts, backbone.size_of(latent), device)
        null = matching(backbone.encode_text([""], device=device), embedded)
        pivots = ddim_pivots(backbone, ddim, latent, embedded)
        tokens = self._image_tokens(pictures)
        modulations = amortised(self.mapper, tokens, ddim, embedded) if values is None else tuple(values)
        if len(modulations) != len(ddim):
            raise ValueError(f"values of {len(modulations)} steps are given; the pipeline takes {len(ddim)}")
        config = self.config
        if refine:
            maps = (config.attention_weight, config.attention_side, config.into, tuple(config.attention_blocks))
            step = GuidedStep(backbone, ddim, StyleObjective(config.guidance, *maps))
            schedule = FitSchedule(iterations=refine)
            modulations = fit_modulations(step, tokens, pivots, embedded, null, schedule, modulations).modulations
        trajectory = Trajectory(pivots[0], embedded, (null,) * len(ddim), modulations, config.into)
        return StyleDiffusionInversion(trajectory, tuple(texts))

    @torch.no_grad()
    @one_at_a_time
    def reconstruct(self, inversion: StyleDiffusionInversion, output_type: str = "pil") -> Any:
        """The inverted images again, sampled with guidance; `output_type` as in diffusers (`decode`)."""
        check_output_type(output_type)
        inversion = inversion.to(self._compute_device)
        latents = reconstruct(self.backbone, self.ddim, inversion.trajectory, self.config.guidance)
        return self.decode(latents[-1], output_type)

    @torch.no_grad()
    @one_at_a_time
    def transfer_style(
        self,
        style: StyleDiffusionInversion,
        image: Images,
        prompt: str | Sequence[str],
        blocks: Sequence[int] = (1,),
        share: float = 0.6,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
    ) -> Any:
        """Content images in the style of the inverted ones: the styles' values, the content's decoder features.

        Args:
            style: `invert` of the style images; `refine` there brings more of their style.
            image: content picture(s), as many as the style images, or a tensor [B, 3, H, W] in [-1, 1].
            prompt: the description of each content image, or one for all.
            blocks: up blocks of the UNet whose features are the content's, 0 the coarsest.
            share: share of the steps, from the noisiest on, in which they are.
            output_type: "pil", "np", "pt" or "latent", as in diffusers (`decode`).
            height, width: size in pixels of the content; its own aspect by default, whatever the style's is.

        Raises:
            ValueError: numbers of images and prompts that differ, an unknown block, a share outside of [0, 1].
        """
        check_output_type(output_type)
        style = style.to(self._compute_device)
        backbone, ddim, trajectory = self.backbone, self.ddim, style.trajectory
        content = self.preprocess(image, height, width)
        if len(content) != len(style.texts):
            raise ValueError(f"{len(content)} content images for {len(style.texts)} style images; give as many")
        texts, latent = one_for_each(prompt, len(content)), backbone.encode_image(content)
        embedded = backbone.encode_text(texts, backbone.size_of(latent), self._compute_device)
        pivots = ddim_pivots(backbone, ddim, latent, embedded)
        prompts, guidance = (embedded, trajectory.prompt, trajectory.nulls[0]), self.config.guidance
        latent = transfer_style(backbone, ddim, pivots, *prompts, style.values, guidance, blocks, share)
        return self.decode(latent, output_type)

    @torch.no_grad()
    @one_at_a_time
    def edit(
        self,
        inversion: StyleDiffusionInversion,
        prompt: str | Sequence[str],
        sharing: Sharing | None = None,
        guidance: float | None = None,
        weights: Mapping[str, float] | None = None,
        blend: Sequence[str] = (),
        output_type: str = "pil",
    ) -> Any:
        """The inverted images with another prompt, by Prompt-to-Prompt with the values that `invert` has found.

        Args:
            inversion: result of `invert`.
            prompt: target description of each image, or one for all.
            sharing: tau_v, tau_c, tau_s, tau_u as shares of the steps; the defaults are the official code's.
            guidance: guidance scale of sampling; that of the training by default.
            weights: factors for the attention of words of the target: {"red": 2.0} makes it redder.
            blend: words of either description outside of whose places the picture stays as it is (local blend).
            output_type: "pil", "np", "pt" or "latent", as in diffusers (`decode`).

        Raises:
            ValueError: the number of prompts is not that of the images, or a word is in no prompt.
        """
        check_output_type(output_type)
        inversion = inversion.to(self._compute_device)
        backbone, text = self.backbone, ClipText(self.tokenizer, self.text_encoder)
        texts = one_for_each(prompt, len(inversion.texts))
        alignment = refine_alignment(text, inversion.texts, texts)
        if weights:
            alignment = reweight(alignment, text, texts, weights)
        size = backbone.map_size(self.config.attention_side, inversion.trajectory.start)
        local = self._local_blend(text, inversion.texts, texts, blend, size) if blend else None
        latent = edit(
            backbone,
            self.ddim,
            inversion.trajectory,
            backbone.encode_text(texts, backbone.size_of(inversion.trajectory.start), self._compute_device),
            self.config.guidance if guidance is None else guidance,
            sharing or Sharing(),
            alignment,
            local,
            local.rules if local else (),
        )
        return self.decode(latent, output_type)

    def load_inversion(self, path: str | Path) -> StyleDiffusionInversion:
        """Read an inversion that its `save` has written. Raises ValueError for a file that is none."""
        return StyleDiffusionInversion.load(path, self._compute_device)

    def _local_blend(
        self,
        text: ClipText,
        sources: Sequence[str],
        targets: Sequence[str],
        words: Sequence[str],
        size: tuple[int, int],
    ) -> LocalBlend:
        """The blend in which each prompt of a pair looks for those of `words` that it has."""
        pairs = []
        for source, target in zip(sources, targets, strict=True):
            has = [[word for word in words if has_word(prompt, word)] for prompt in (source, target)]
            if missing := sorted(set(words).difference(*has)):
                raise ValueError(f"blend names {', '.join(missing)}, which neither {source!r} nor {target!r} has")
            pairs.append(BlendWords(*has))
        return LocalBlend(text, sources, targets, pairs, self.config.num_steps, size)

    def _image_tokens(self, pictures: Tensor) -> Tensor:
        pixels = ClipPixels(
            self.image_encoder.config.image_size, tuple(self.config.image_mean), tuple(self.config.image_std)
        )
        return ImageTokens(self.image_encoder, pixels)(pictures, self._compute_device)
