"""TurboEdit as a diffusers pipeline: invert an image once (Algorithm 1), edit it many times by prompts (Algorithm 2).

An exported folder carries this file and its siblings, so stock diffusers loads it with `trust_remote_code=True` and
nothing of the project installed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

# diffusers carries only the siblings that this file names; some of these stand behind the others.
from .attention import controlled
from .attention_edits import Alignment  # noqa: F401
from .attention_maps import AttentionMaps, Capture
from .backbone import Backbone  # noqa: F401
from .carried_code import carry_code  # noqa: F401
from .components import load_components
from .families import family_of  # noqa: F401
from .frozen_attention import frozen_attention  # noqa: F401
from .full_size import at_full_size
from .generator import FewStepGenerator
from .inversion_files import read_inversion  # noqa: F401
from .masks import automatic_kind, difference_mask, drawn_mask, read_mask, soft_mask
from .noise_encoder import NoiseEncoder, NoisePosterior
from .options import MASK_THRESHOLD, TURBO_TIMESTEPS, Outside
from .own_dtype import GradientScale  # noqa: F401
from .pictures import Images, Picture, one_for_each
from .pipeline_base import PipelineBase, check_output_type, one_at_a_time
from .pipeline_files import PipelineFiles  # noqa: F401
from .precision import without_autocast  # noqa: F401
from .quantized import QuantizedLinear  # noqa: F401
from .schedule import NoiseSchedule  # noqa: F401
from .shapes import Cutout, SizeConditioning
from .text import Prompt, concatenate
from .turboedit_inversion import TurboEditInversion
from .turboedit_steps import AutomaticMask, EditSteps, InversionStep, inversion_steps
from .turboedit_wishes import Strength, Wish, count_results, in_target_places, mixed, read_wishes
from .unet_family import UNetBackbone  # noqa: F401
from .upright import upright_rgb  # noqa: F401
from .weight_files import only_variant  # noqa: F401
from .widening import copied  # noqa: F401
from .word_alignment import refine_alignment
from .words import Reader  # noqa: F401

if TYPE_CHECKING:  # further families, which are carried along and imported where one is asked for
    from .flux import Flux  # noqa: F401
    from .flux2 import Flux2  # noqa: F401
    from .sana import Sana  # noqa: F401
    from .sd3 import StableDiffusion3  # noqa: F401
    from .z_image import ZImage  # noqa: F401

logger = logging.getLogger(__name__)

Descriptions = str | Sequence[str] | Mapping[Any, Strength]
"""Target of an edit: a description for all results or one for each, or a mapping from such to their strengths."""

Masks = str | Picture | Tensor | Sequence[Picture] | None
StepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor]]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class EditOutput:
    """Result of `edit`.

    Args:
        images: R results in the form of `output_type`: pictures, an array, or a tensor of images or latents.
        mask: where the picture could change, [R, 1, h, w] in [0, 1]; None without a mask.
        inversion: the R edited pictures as a starting point for a further edit.
    """

    images: Any
    mask: Tensor | None
    inversion: TurboEditInversion

    def at_full_size(self, photographs: Images, mask: Masks = None) -> list[Image.Image]:
        """The R edits at the sizes of their photographs: their own pixels wherever the mask is zero.

        Without a mask it is the whole edited picture, in the size of the part of the photograph that it shows.

        Args:
            photographs: the pictures that were inverted, one for all results or one for each.
            mask: the drawn mask(s) of the edit, whose edge is exact then; by default the mask that the edit had.

        Raises:
            ValueError: photographs of other sizes than those that were inverted, or edits that are no PIL pictures.
        """
        if not isinstance(self.images, list):
            raise ValueError("edits at full size are made of PIL pictures: edit with output_type 'pil'")
        if self.inversion.cutouts is None:
            raise ValueError("the inversion is from a file of before photographs' sizes were kept: invert anew")
        return at_full_size(photographs, self.images, self.inversion.cutouts, self.mask if mask is None else mask)


class TurboEditPipeline(PipelineBase, DiffusionPipeline):
    """Inversion and editing of real images with a trained noise encoder on a few-step generator.

    Args:
        vae, text_encoder, tokenizer, unet or transformer, scheduler: the generator, as in diffusers.
        text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3: SDXL, FLUX.1 and SD3 have them, too.
        encoder: the noise encoder's network (NoiseEncoder.unet).
        timesteps: timesteps that the encoder was trained on, from noisy to clean, separated by spaces.
        attention_resolution: side of the cross-attention maps that make the automatic mask, for latents of the UNet's
            own size (16 of SDXL-Turbo's 64). Those of other shapes have maps that are as much smaller than they are.
        size_conditioning: what SDXL was told of sizes in the encoder's training: "original" for that of each photograph
            and where it was cropped, "uncropped" for pictures that always had the size that they have.
        base, base_variant: folder or hub id of the generator, and variant of its files; where no network is given, all
            parts but the encoder are loaded from there, in the encoder's dtype.

    Raises:
        ValueError: an unknown size_conditioning.
    """

    # The encoder takes turns with the UNet, so it is in no sequence: it comes once and stays for the whole inversion.
    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->unet->transformer->vae"
    _optional_components: ClassVar[list[str]] = [
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler", "text_encoder_2", "tokenizer_2"),
        *("transformer", "text_encoder_3", "tokenizer_3"),
    ]

    def __init__(
        self,
        encoder: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        unet: Any = None,
        scheduler: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        timesteps: str = " ".join(map(str, TURBO_TIMESTEPS)),
        attention_resolution: int = 16,
        size_conditioning: str = "uncropped",
        base: str | None = None,
        base_variant: str | None = None,
        transformer: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        if size_conditioning not in ("original", "uncropped"):
            raise ValueError(f"size_conditioning is {size_conditioning!r}; expected original or uncropped")
        generator = {
            "vae": vae,
            "text_encoder": text_encoder,
            "text_encoder_2": text_encoder_2,
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "unet": unet,
            "scheduler": scheduler,
            "transformer": transformer,
            "text_encoder_3": text_encoder_3,
            "tokenizer_3": tokenizer_3,
        }
        if unet is None and transformer is None and base is not None:
            found = load_components(base, encoder.dtype, base_variant)
            generator = {name: found.get(name) for name in generator}
            base = base_variant = None  # the parts are here now, and are saved with the others
        self.register_modules(**generator, encoder=encoder)
        self.register_to_config(
            timesteps=timesteps,
            attention_resolution=attention_resolution,
            size_conditioning=size_conditioning,
            base=base,
            base_variant=base_variant,
        )

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The encoder's timesteps, from noisy to clean: indices, or real numbers of a flow."""
        return tuple(int(t) if t.isdigit() else float(t) for t in self.config.timesteps.split())

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps in which `invert` can work, ascending."""
        return tuple(self._step_choices())

    def timesteps_of(self, num_steps: int | None) -> tuple[float, ...]:
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

    def _step_choices(self) -> dict[int, tuple[float, ...]]:
        """Timesteps by their number."""
        return self.backbone.schedule.fewer(self.timesteps)

    def __call__(
        self,
        image: Images,
        prompt: str | Sequence[str],
        target: Descriptions,
        strength: Strength = 1.0,
        mask: Masks = None,
        *,
        threshold: float = MASK_THRESHOLD,
        blur: float = 0.5,
        outside: Outside = "source",
        frozen_steps: int = 0,
        num_steps: int | None = None,
        sample: bool = False,
        generator: Generators = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
    ) -> EditOutput:
        """Invert `image` and edit it, in one call; see `invert` and `edit` for what they take and raise.

        Args:
            image, prompt, num_steps, sample, generator, height, width: arguments of `invert`.
            target: the `prompt` of `edit`, whose other arguments have their names there.
        """
        check_output_type(output_type)
        read_wishes(target, strength)  # a mistake is told before the inversion
        inversion = self.invert(
            image, prompt, num_steps, sample, generator, automatic_kind(mask) == "attention", height, width
        )
        return self.edit(
            inversion, target, strength, mask, threshold, blur, frozen_steps, output_type, callback_on_step_end, outside
        )

    @torch.no_grad()
    @one_at_a_time
    def invert(
        self,
        image: Images,
        prompt: str | Sequence[str],
        num_steps: int | None = None,
        sample: bool = False,
        generator: Generators = None,
        attention: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> TurboEditInversion:
        """Algorithm 1: the noises from which the generator reproduces `image`; two evaluations a step.

        Args:
            image: picture(s): PIL's, paths, arrays [H, W, 3] or [B, H, W, 3] (uint8, or floats in [0, 1]), or lists of
                them; or a tensor [B, 3, H, W] in [-1, 1].
            prompt: the description of each image, or one for all.
            num_steps: how many of the encoder's timesteps to use, evenly spaced (`timesteps_of`); by default all.
            sample: draw the noise from the encoder's Gaussian (with `generator`) instead of taking its mean.
            generator: torch's generator of the sampled noise, or one for each image.
            attention: gather the maps that a mask from attention needs. Without, the first edit with such a mask
                gathers them, by one more evaluation a step.
            height, width: size in pixels in which the networks see the image; by default it keeps its aspect at about
                the area for which they were made (`preprocess`).

        Raises:
            ValueError: a picture that is none or cannot be read, pictures of several shapes, a size that the networks
                cannot have, a number of prompts or generators that is not that of the images, timesteps of num_steps on
                which the encoder was not trained, or with `attention` a UNet that has no cross attention at
                `attention_resolution`.
        """
        backbone, device = self.backbone, self._compute_device
        timesteps = self.timesteps_of(num_steps)
        pictures, cutouts = self._read_pictures(image, height, width)
        texts = one_for_each(prompt, len(pictures))
        if isinstance(generator, list) and len(generator) not in (1, len(texts)):
            raise ValueError(f"{len(generator)} generators for {len(texts)} images; give one, or one for each image")
        self._warn_of_cut_words(texts)
        x0 = backbone.encode_image(pictures)
        embedded = backbone.encode_text(texts, self._sizes(cutouts), device)
        encoder = NoiseEncoder(self.encoder, backbone.schedule)
        few_step = FewStepGenerator(backbone, timesteps)
        maps = AttentionMaps(backbone.map_size(self.config.attention_resolution, x0)) if attention else None

        def draw(posterior: NoisePosterior) -> Tensor:
            if not sample:
                return posterior.mean
            return posterior.sample(randn_tensor(x0.shape, generator, x0.device, x0.dtype))

        steps = list[InversionStep]()
        with (
            controlled(self.network, [] if maps is None else [Capture(maps)]),
            self.progress_bar(total=len(timesteps)) as bar,
        ):
            for step in inversion_steps(encoder, few_step, x0, embedded, draw):
                steps.append(step)
                bar.update()
        described = tuple((text,) for text in texts)
        return TurboEditInversion(
            timesteps,
            tuple(step.noise for step in steps),
            tuple(step.reconstruction for step in steps),
            tuple(torch.exp(0.5 * step.posterior.logvar) for step in steps),
            embedded,
            described,
            attention=None if maps is None else maps.mean(),
            cutouts=cutouts,
            latent=x0,
        )

    @torch.no_grad()
    @one_at_a_time
    def edit(
        self,
        inversion: TurboEditInversion,
        prompt: Descriptions,
        strength: Strength = 1.0,
        mask: Masks = None,
        threshold: float = MASK_THRESHOLD,
        blur: float = 0.5,
        frozen_steps: int = 0,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
        outside: Outside = "source",
        align: bool = False,
    ) -> EditOutput:
        """Algorithm 2: the inverted images with another prompt; one evaluation a step.

        Result i has image i, prompt i, strength i and mask i; where there is but one of them, all results have it. So
        lists of prompts or strengths give many edits of one inversion.

        Args:
            inversion: result of `invert`, or of an earlier edit. On top of a masked edit give its mask again: the
                noises are still the source's, so without it the earlier edit shows everywhere. Frozen maps are not
                kept.
            prompt: target description(s); a mapping from descriptions to strengths applies several edits at once.
            strength: how far the prompt embeddings go from source (0) to target (1); below 0 and above 1 extrapolate.
                A mapping has its own strengths.
            mask: None (everything may change); "auto", which is "prediction" (where the generator's first estimates
                under both prompts differ; costs nothing), "noise" (where the noise encoder's do; its evaluation of both
                prompts more) or "attention" (to the words that differ, as in the paper); picture(s) of any kind that
                `invert` takes or an array [H, W] (white may change), of the photograph's aspect, cropped as
                it was, or of the edited picture's; or a tensor [R or 1, 1, H, W] in [0, 1] of the latter.
            threshold: threshold of an automatic mask, as a share of its strongest place. The paper takes 0.6 for
                attention.
            blur: standard deviation of the mask's soft edge, in latent pixels.
            frozen_steps: number of steps, from the noisiest on, in which the edit has the source's attention maps
                (Prompt-to-Prompt): cross attention to the words that both descriptions have, and self attention up to a
                half of the latent's side. The source is evaluated beside the edit, so such a step costs two. The paper
                freezes one on PIE-Bench with its short prompts, and none with detailed ones.
            output_type: "pil", "np", "pt" or "latent", as in diffusers (`decode`).
            callback_on_step_end: called as in diffusers with the pipeline, the step's number, its timestep and
                {"latents": the estimate of x0}; goes on with the latents that it gives back.
            outside: what stands in the end where nothing changed: "source", the picture's own latent, or
                "reconstruction", the generator's last one, as in the paper. That is outside of the mask, and elsewhere
                as far as the edit is what the reconstruction was (`models.masks.unchanged`). Until the last step it is
                the reconstruction of each step either way.
            align: whether each word goes from where the source has it to where the target does. Without, token i of one
                description goes to token i of the other, so that a word that is added or dropped pulls all behind it
                through meanings that neither has, at other strengths than 1. With it a strength of 0 is the source's
                words in the target's order, which is near the reconstruction but is not it.

        Raises:
            ValueError: numbers of images, prompts, strengths and masks that do not go together, a mask of an unknown
                kind or of another shape or aspect, an unknown output_type or outside, a frozen_steps that is not
                between 0 and the number of steps, frozen_steps or align with several edits at once, or a UNet that has
                no cross attention at `attention_resolution`.
        """
        check_output_type(output_type)
        if outside not in get_args(Outside):
            raise ValueError(f"outside is {outside!r}; expected {' or '.join(get_args(Outside))}")
        wishes, automatic = read_wishes(prompt, strength), automatic_kind(mask)
        backbone, device = self.backbone, self._compute_device
        drawn = None if mask is None or automatic else read_mask(mask)
        count = count_results(len(inversion), wishes, 1 if drawn is None else len(drawn))
        wishes = [wish.spread(count) for wish in wishes]
        self._warn_of_cut_words([text for wish in wishes for text in wish.texts])
        # Texts before the UNet, so that offloaded text encoders have left the device.
        targets = [backbone.encode_text(wish.texts, device=device) for wish in wishes]
        generator = FewStepGenerator(backbone, inversion.timesteps)
        steps = EditSteps(generator, self.config.attention_resolution)
        if automatic == "attention" and inversion.attention is None:
            inversion.attention = steps.attention(inversion.to(device))
        inversion = inversion.to(device)[range(count) if len(inversion) == count else [0] * count]
        if outside == "source" and inversion.latent is None:
            logger.warning(
                "the inversion comes from a file that holds no latent of the picture: where nothing changes stands the "
                "last reconstruction; invert the picture anew to keep the picture itself"
            )
        embedded = mixed(self._aligned(inversion, wishes) if align else inversion.prompt, targets, wishes)
        where: Tensor | AutomaticMask | None = None
        if automatic == "noise":
            places = difference_mask(self.noise_difference(inversion, embedded), threshold, self.encoder.dtype)
            where = soft_mask(places, inversion.size, blur)
        elif automatic is not None:
            where = AutomaticMask(automatic, threshold, blur)
        if drawn is not None:
            cutouts = inversion.cutouts or (Cutout.whole(*backbone.pixels(inversion.size)),) * count
            where = soft_mask(drawn_mask(drawn, cutouts).to(device), inversion.size, blur).expand(count, -1, -1, -1)
        with self.progress_bar(total=len(inversion.timesteps)) as bar:

            def after_step(i: int, x0: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return x0
                return callback_on_step_end(self, i, inversion.timesteps[i], {"latents": x0})["latents"]

            edited, masks = steps.edit(inversion, wishes, embedded, where, outside, frozen_steps, after_step)
        assert edited.latent is not None, "an edit makes it"
        return EditOutput(self.decode(edited.latent, output_type), masks, edited)

    def _aligned(self, inversion: TurboEditInversion, wishes: Sequence[Wish]) -> Prompt:
        """The inversion's prompts with their words in the places of the one description that each edit has."""
        if len(wishes) > 1 or any(len(texts) > 1 for texts in inversion.texts):
            raise ValueError("align is for one description at a time: give one, on an inversion or an edit of one")
        text = self.backbone.text
        assert text is not None, "the pipeline has text encoders"
        pairs = refine_alignment(text, [texts[0] for texts in inversion.texts], wishes[0].texts)
        return in_target_places(inversion.prompt, pairs)

    @torch.no_grad()
    def noise_difference(self, inversion: TurboEditInversion, target: Prompt) -> Tensor:
        """Difference [R, C, h, w] of the encoder's first means under the target's and the source's prompts.

        Raises:
            ValueError: the inversion has no latent.
        """
        if inversion.latent is None:
            raise ValueError(
                "the inversion comes from a file that holds no latent of the picture, which mask 'noise' needs; invert "
                "the picture anew, or use mask 'auto'"
            )
        latent = torch.cat([inversion.latent, inversion.latent])
        t = torch.full((len(latent),), inversion.timesteps[0], device=latent.device)
        encoder, both = NoiseEncoder(self.encoder, self.backbone.schedule), concatenate([inversion.prompt, target])
        before, after = encoder.posterior(latent, torch.zeros_like(latent), both, t).mean.chunk(2)
        return after - before

    def _sizes(self, cutouts: Sequence[Cutout]) -> list[SizeConditioning] | SizeConditioning:
        """What SDXL is told of the sizes of pictures, as in the encoder's training; one where all are the same."""
        uncropped = self.config.size_conditioning == "uncropped"
        sizes = [SizeConditioning.uncropped(*cutout.size) if uncropped else cutout.conditioning for cutout in cutouts]
        return sizes[0] if len(set(sizes)) == 1 else sizes

    def load_inversion(self, path: str | Path) -> TurboEditInversion:
        """Read an inversion that its `save` has written. Raises ValueError for a file that is none."""
        return TurboEditInversion.load(path, self._compute_device)

    def _warn_of_cut_words(self, texts: Sequence[str]) -> None:
        """Say which prompts are longer than the text encoder reads: an edit of the lost words would do nothing."""
        first, *_ = self.backbone.readers
        for text in dict.fromkeys(texts):
            length = len(first.tokenizer(text, verbose=False).input_ids)
            if length > first.limit:
                logger.warning("the prompt has %d tokens and only the first %d are read: %s", length, first.limit, text)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(map(str, numbers))
