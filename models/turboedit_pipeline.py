"""TurboEdit as a diffusers pipeline: invert an image once (Algorithm 1), edit it many times by prompts (Algorithm 2).

An exported folder carries this file and its siblings, so stock diffusers loads it with `trust_remote_code=True` and
nothing of the project installed.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

# diffusers carries only the siblings that this file names; some of these stand behind the others.
from .attention import Rule, controlled
from .attention_edits import Alignment  # noqa: F401
from .attention_maps import AttentionMaps, Capture
from .backbone import Backbone
from .components import load_components
from .frozen_attention import frozen_attention
from .generator import FewStepGenerator
from .masks import soft_mask, word_mask
from .noise_encoder import NoiseEncoder
from .options import TURBO_TIMESTEPS
from .pictures import Images, one_for_each, to_pictures, to_tensor
from .schedule import NoiseSchedule, trailing_timesteps
from .text import ClipText, DualClipText, Prompt, concatenate, interpolate
from .widening import widened  # noqa: F401
from .word_alignment import refine_alignment  # noqa: F401
from .words import changed_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TurboEditInversion:
    """Result that `invert` (or an edit, for an edit on top of it) gives to `edit`.

    Args:
        timesteps: the S timestep indices, from noisy to clean.
        noises, reconstructions: noise and generator's x0 of each timestep, [B, 4, h, w].
        sigmas: standard deviation of the encoder's Gaussian at each timestep, [B, 4, h, w].
        prompt, texts: the prompt that goes with them, embedded and as words (B).
        attention: cross-attention maps of the prompt, mean over steps, layers and heads, [B, r*r, L].
    """

    timesteps: tuple[int, ...]
    noises: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]
    sigmas: tuple[Tensor, ...]
    prompt: Prompt
    texts: tuple[str, ...]
    attention: Tensor


@dataclass(frozen=True)
class EditOutput:
    """Result of `edit`.

    Args:
        images: B pictures.
        mask: where the picture could change, [B, 1, h, w] in [0, 1]; None without a mask.
        inversion: the edited pictures as a starting point for a further edit.
    """

    images: list[Image.Image]
    mask: Tensor | None
    inversion: TurboEditInversion


class TurboEditPipeline(DiffusionPipeline):
    """Inversion and editing of real images with a trained noise encoder on a few-step generator.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the generator, as in diffusers.
        text_encoder_2, tokenizer_2: SDXL has them, too.
        encoder: the noise encoder's UNet (NoiseEncoder.unet).
        timesteps: indices that the encoder was trained on, from noisy to clean, separated by spaces.
        attention_resolution: side of the cross-attention maps that make the automatic mask (16 for SDXL at 512 pixels).
        base, base_variant: folder or hub id of the generator, and variant of its files; where no `unet` is given, all
            parts but the encoder are loaded from there, in the encoder's dtype.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler", "text_encoder_2", "tokenizer_2")
    ]

    def __init__(
        self,
        encoder: UNet2DConditionModel,
        vae: AutoencoderKL | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        unet: UNet2DConditionModel | None = None,
        scheduler: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        timesteps: str = " ".join(map(str, TURBO_TIMESTEPS)),
        attention_resolution: int = 16,
        base: str | None = None,
        base_variant: str | None = None,
    ) -> None:
        super().__init__()
        generator = {
            "vae": vae,
            "text_encoder": text_encoder,
            "text_encoder_2": text_encoder_2,
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "unet": unet,
            "scheduler": scheduler,
        }
        if unet is None and base is not None:
            found = load_components(base, encoder.dtype, base_variant)
            generator = {name: found.get(name) for name in generator}
            base = base_variant = None  # the parts are here now, and are saved with the others
        self.register_modules(**generator, encoder=encoder)
        self.register_to_config(
            timesteps=timesteps, attention_resolution=attention_resolution, base=base, base_variant=base_variant
        )

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The encoder's timestep indices, from noisy to clean."""
        return tuple(int(t) for t in self.config.timesteps.split())

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps in which `invert` can work, ascending."""
        return tuple(self._step_choices())

    def timesteps_of(self, num_steps: int | None) -> tuple[int, ...]:
        """The timesteps of an inversion in `num_steps` steps: of (999, 749, 499, 249) two are (999, 499).

        As in the generator's own few-step sampling they are the "trailing" ones of that number. None takes all.

        Raises:
            ValueError: the encoder was not trained on all of those.
        """
        known, choices = self.timesteps, self._step_choices()
        if num_steps is None:
            return known
        if num_steps not in choices:
            raise ValueError(
                f"num_steps is {num_steps}; the encoder was trained on {len(known)} timesteps, {_listed(known)}, which "
                f"hold the evenly spaced ones of {_listed(choices)} steps"
            )
        return choices[num_steps]

    def _step_choices(self) -> dict[int, tuple[int, ...]]:
        """Timesteps by their number: the trailing ones that the encoder knows, and all of its own."""
        known, total = self.timesteps, self.scheduler.config.num_train_timesteps
        trailing = {n: trailing_timesteps(n, total) for n in range(1, len(known))}
        return {n: chosen for n, chosen in trailing.items() if set(chosen) <= set(known)} | {len(known): known}

    @property
    def backbone(self) -> Backbone:
        """The generator's parts in the project's words; a VAE that overflows in float16 is moved to float32."""
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)
        text: ClipText | DualClipText = ClipText(self.tokenizer, self.text_encoder)
        if self.text_encoder_2 is not None:
            text = DualClipText([self.tokenizer, self.tokenizer_2], [self.text_encoder, self.text_encoder_2])
        return Backbone(schedule=NoiseSchedule.from_scheduler(self.scheduler), vae=self.vae, unet=self.unet, text=text)

    def preprocess(self, image: Images) -> Tensor:
        """Turn `image` into [B, 3, S, S] in [-1, 1], S the generator's side in pixels.

        Pictures are resized and cropped at the centre; a tensor is taken as it is.
        """
        return to_tensor(image, self.backbone)

    def decode(self, latent: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents [B, 4, h, w]."""
        return to_pictures(latent, self.backbone)

    @torch.no_grad()
    def invert(
        self,
        image: Images,
        prompt: str | Sequence[str],
        num_steps: int | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> TurboEditInversion:
        """Algorithm 1: the noises from which the generator reproduces `image`; two UNet evaluations a step.

        Args:
            image: picture(s), or a tensor [B, 3, H, W] in [-1, 1].
            prompt: the description of each image, or one for all.
            num_steps: how many of the encoder's timesteps to use, evenly spaced (`timesteps_of`); by default all.
            sample: draw the noise from the encoder's Gaussian (with `generator`) instead of taking its mean.

        Raises:
            ValueError: the number of prompts is not that of the images, or the encoder was not trained on the
                timesteps of num_steps.
        """
        backbone = self.backbone
        x0 = backbone.encode_image(self.preprocess(image))
        texts = one_for_each(prompt, len(x0))
        timesteps = self.timesteps_of(num_steps)
        self._warn_of_cut_words(texts)
        embedded = backbone.encode_text(texts)
        encoder = NoiseEncoder(self.encoder, backbone.schedule)
        few_step = FewStepGenerator(backbone, timesteps)
        reconstruction = torch.zeros_like(x0)
        noises, reconstructions, sigmas = [], [], []
        maps = AttentionMaps(self.config.attention_resolution)
        with controlled(self.unet, [Capture(maps)]):
            for step in self.progress_bar(timesteps):
                t = torch.full((len(x0),), step, device=x0.device)
                posterior = encoder.posterior(x0, reconstruction, embedded, t)
                noise = posterior.mean
                if sample:
                    noise = posterior.sample(_normal(x0, generator))
                x_t = backbone.schedule.add_noise(reconstruction, noise, t)
                reconstruction = few_step.predict_x0(x_t, embedded, t)
                noises.append(noise)
                sigmas.append(torch.exp(0.5 * posterior.logvar))
                reconstructions.append(reconstruction)
        return TurboEditInversion(
            timesteps, tuple(noises), tuple(reconstructions), tuple(sigmas), embedded, tuple(texts), maps.mean()
        )

    @torch.no_grad()
    def edit(
        self,
        inversion: TurboEditInversion,
        prompt: str | Sequence[str] | Mapping[str, float],
        strength: float = 1.0,
        mask: Image.Image | Tensor | str | None = None,
        threshold: float = 0.6,
        blur: float = 0.5,
        frozen_steps: int = 0,
    ) -> EditOutput:
        """Algorithm 2: the inverted images with another prompt; one UNet evaluation a step.

        Args:
            inversion: result of `invert`, or of an earlier edit. On top of a masked edit give its mask again: the
                noises are still the source's, so without it the earlier edit shows everywhere. Frozen maps are not
                kept.
            prompt: target description of each image, or one for all; a mapping from descriptions to strengths applies
                several edits at once.
            strength: how far the prompt embeddings go from source (0) to target (1); below 0 and above 1 extrapolate.
                A mapping has its own strengths.
            mask: None (everything may change), "auto" (from the attention to the words that differ), a picture (white
                may change; cropped like the image) or a tensor [B or 1, 1, H, W] in [0, 1].
            threshold: threshold of the automatic mask, as a share of the strongest attention.
            blur: standard deviation of the mask's soft edge, in latent pixels.
            frozen_steps: number of steps, from the noisiest on, in which the edit has the source's attention maps
                (Prompt-to-Prompt): cross attention to the words that both descriptions have, and self attention up to a
                half of the latent's side. The source is evaluated beside the edit, so such a step costs two. The paper
                freezes one on PIE-Bench with its short prompts, and none with detailed ones.

        Raises:
            ValueError: the number of prompts is not that of the images, the mask is of an unknown kind or shape, or
                frozen_steps is not between 0 and the number of steps or comes with several edits at once.
        """
        backbone = self.backbone
        count = len(inversion.texts)
        if isinstance(prompt, Mapping) and not prompt:
            raise ValueError("prompt is an empty mapping; give at least one description with its strength")
        wishes = prompt if isinstance(prompt, Mapping) else {tuple(one_for_each(prompt, count)): strength}
        targets = [one_for_each(wish, count) for wish in wishes]
        self._warn_of_cut_words([text for target in targets for text in target])
        embedded = interpolate(inversion.prompt, [backbone.encode_text(t) for t in targets], list(wishes.values()))
        automatic = isinstance(mask, str) and mask == "auto"
        masks = None if automatic else self._fixed_mask(mask, inversion, blur)
        few_step = FewStepGenerator(backbone, inversion.timesteps)
        num_steps = len(inversion.timesteps)
        freezing = self._freezing(inversion, targets, list(wishes.values()), frozen_steps)
        x0 = torch.zeros_like(inversion.noises[0])
        reconstructions: list[Tensor] = []
        maps = AttentionMaps(self.config.attention_resolution)
        with self.progress_bar(total=num_steps) as bar:
            for rules, steps in ((freezing, range(frozen_steps)), ([], range(frozen_steps, num_steps))):
                if not steps:
                    continue
                with controlled(self.unet, [*rules, Capture(maps, slice(-count, None))]):
                    for i in steps:
                        x0 = _predict(few_step, inversion, i, embedded, x0, beside_source=bool(rules))
                        if automatic:
                            masks = self._word_masks(inversion, targets, maps.mean(), threshold, blur)
                        if masks is not None:
                            x0 = masks * x0 + (1 - masks) * inversion.reconstructions[i]
                        reconstructions.append(x0)
                        bar.update()
        edited = replace(
            inversion,
            reconstructions=tuple(reconstructions),
            prompt=embedded,
            texts=tuple(targets[-1]),
            attention=maps.mean(),
        )
        return EditOutput(self.decode(x0), masks, edited)

    def _warn_of_cut_words(self, texts: Sequence[str]) -> None:
        """Say which prompts are longer than the text encoder reads: an edit of the lost words would do nothing."""
        limit = self.tokenizer.model_max_length
        for text in dict.fromkeys(texts):
            length = len(self.tokenizer(text).input_ids)
            if length > limit:
                logger.warning("the prompt has %d tokens and only the first %d are read: %s", length, limit, text)

    def _freezing(
        self, inversion: TurboEditInversion, targets: list[list[str]], strengths: list[float], frozen_steps: int
    ) -> list[Rule]:
        """What holds in the frozen steps; nothing if there are none."""
        num_steps = len(inversion.timesteps)
        if not 0 <= frozen_steps <= num_steps:
            raise ValueError(f"frozen_steps is {frozen_steps}; expected 0 to {num_steps}, the inversion's steps")
        if not frozen_steps:
            return []
        if len(targets) > 1:
            raise ValueError(f"attention can be frozen for one edit at a time, but prompt has {len(targets)} of them")
        text, max_side = self.backbone.text, inversion.noises[0].shape[-1] // 2
        assert text is not None, "a pipeline has text encoders"
        return frozen_attention(text, inversion.texts, targets[0], strengths[0], max_side)

    def _fixed_mask(
        self, mask: Image.Image | Tensor | str | None, inversion: TurboEditInversion, blur: float
    ) -> Tensor | None:
        """The user's mask as [B, 1, h, w]; None if there is none."""
        if mask is None:
            return None
        like = inversion.noises[0]
        if isinstance(mask, Image.Image):
            processor = VaeImageProcessor(do_normalize=False, do_convert_grayscale=True)
            size = self.backbone.image_size
            mask = processor.preprocess(mask, height=size, width=size, resize_mode="crop")
        if not isinstance(mask, Tensor):
            raise ValueError(f'mask is {mask!r}; expected None, "auto", a picture or a tensor [B, 1, H, W]')
        if mask.ndim != 4 or mask.shape[0] not in (1, len(like)) or mask.shape[1] != 1:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; expected [{len(like)}, 1, H, W] or [1, 1, H, W]")
        return soft_mask(mask.to(like.device), _sides(like), blur).expand(len(like), -1, -1, -1)

    def _word_masks(
        self, inversion: TurboEditInversion, targets: list[list[str]], maps: Tensor, threshold: float, blur: float
    ) -> Tensor:
        """Automatic mask [B, 1, h, w] from the words that are in one prompt only.

        Words of the source are placed by the source's maps, words of a target by those of the edit itself.
        """
        sources = list(inversion.texts)
        places = torch.zeros_like(maps[:, :, 0]).view(len(sources), 1, *(2 * [self.config.attention_resolution]))
        for target in targets:
            before = word_mask(inversion.attention, changed_tokens(self.tokenizer, sources, target), threshold)
            after = word_mask(maps, changed_tokens(self.tokenizer, target, sources), threshold)
            places = torch.maximum(places, torch.maximum(before, after))
        return soft_mask(places, _sides(inversion.noises[0]), blur)


def _predict(
    few_step: FewStepGenerator, inversion: TurboEditInversion, i: int, prompt: Prompt, x0: Tensor, beside_source: bool
) -> Tensor:
    """G's estimate [B, 4, h, w] after step `i`, whose noise is added to the estimate `x0` before it.

    Args:
        beside_source: evaluate the inversion's own step in rows before those of the edit, for rules to take from.
    """
    noise, count = inversion.noises[i], len(x0)
    t = torch.full((count,), inversion.timesteps[i], device=x0.device)
    if beside_source:
        before = inversion.reconstructions[i - 1] if i else torch.zeros_like(x0)
        x0, noise, t = torch.cat([before, x0]), torch.cat([noise, noise]), torch.cat([t, t])
        prompt = concatenate([inversion.prompt, prompt])
    return few_step.predict_x0(few_step.schedule.add_noise(x0, noise, t), prompt, t)[-count:]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _sides(latent: Tensor) -> tuple[int, int]:
    """(h, w)."""
    return latent.shape[-2], latent.shape[-1]


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `like`'s shape from `generator` (which may live on the CPU)."""
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)
