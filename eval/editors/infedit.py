"""InfEdit (Xu et al. 2024): editing without inversion (DDCM), with unified attention control."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.editors.blend_words import usable_words
from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import abar, decode_latents, full, networks_of, require_unet
from eval.editors.guided import blend_size
from eval.editors.randomness import image_keys, image_noise
from models.attention import Rows, Rule, attention_layers, controlled
from models.attention_edits import CrossEdit, SelfInjection
from models.attention_maps import AttentionMaps, Capture, token_heat
from models.backbone import Backbone
from models.ddim import predict_noise
from models.schedule import trailing_timesteps
from models.text import Prompt, concatenate
from models.word_alignment import refine_alignment
from models.words import named_tokens


@dataclass(frozen=True)
class InfEditState:
    """Latents [B, C, h, w] of the images, the keys of their noise and their prompts."""

    latent: Tensor
    keys: tuple[int, ...]
    prompt: Prompt


class InfEdit:
    """Three branches with the same noise: the source, which is always the noised image; the target; and the layout.

    At each step both others are calibrated by what the source's prediction misses (Algorithm 2 of the paper), with
    z_t of the branch, z_s of the source, its latent z_0 and the difference of their predicted noises:

        z_0' = z_0 + (z_t - z_s - sqrt(1 - abar) (eps_t - eps_s)) / sqrt(abar)

    and noised anew to the next timestep. Attention as in the official code, from which Algorithm 3 of the paper differs
    in that the target's cross attention is refined by the layout's maps: for a share of the steps the target has the
    source's self-attention maps and its cross-attention maps of common words, and the layout, which has the source's
    prompt, all of the source's self attention; afterwards the layout asks with the target's queries for the source's
    keys and values. Where words of the target are named, its latent becomes the layout's outside of their places; the
    threshold of these begins so high that nothing is left. The official code also lends a replaced word the map of the
    most similar one; here, as in the paper, new words have their own.

    Strength is the share of the steps without the source's attention; PIE-Bench's runner has 0.3. No guidance: a turbo
    generator takes none.

    Args:
        num_steps: number of trailing timesteps.
        threshold: share of the strongest attention to the named words above which the target may change; at timestep t
            at least 0.15 / sqrt(abar_t).
    """

    name = "infedit"
    strengths = (0.1, 0.3, 0.5, 0.7)

    def __init__(self, backbone: Backbone, num_steps: int = 12, threshold: float = 0.55) -> None:
        require_unet(backbone, "InfEdit")
        self.backbone = backbone
        self.networks = networks_of(backbone)
        self.num_steps = num_steps
        self.timesteps = trailing_timesteps(num_steps, len(backbone.schedule.alphas_cumprod))
        self.threshold = threshold

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.timesteps, "threshold": self.threshold}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents alone."""
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        return InvertedImages(tuple(prompts), {}, InfEditState(latent, image_keys(images), prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample all steps, three evaluations each.

        Raises:
            ValueError: a strength that is no share, or words for another number of images.
        """
        strength = 0.3 if request.strength is None else request.strength
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}; expected a share of the {self.num_steps} steps from 0 to 1")
        held = int((1 - strength) * self.num_steps + 1e-6)
        state: InfEditState = inversion.state
        blend = _Blend(self.backbone, inversion.prompts, request, self.threshold, state.latent)
        target = self.backbone.encode_text(request.prompt, self.backbone.size_of(state.latent))
        prompts = concatenate([state.prompt, target, state.prompt])
        branches = image_noise(state.keys, "infedit", request.seed, state.latent).repeat(3, 1, 1, 1)
        edited = state.latent
        for rules, steps in (
            (self._early(inversion.prompts, request.prompt), range(held)),
            (self._late(len(state.latent)), range(held, self.num_steps)),
        ):
            with controlled(self.backbone.unet, [*rules, *blend.rules]):
                for step in steps:
                    edited, branches = self._advance(state, prompts, branches, step, request.seed)
                    if step:
                        branches = blend(branches, abar(self.backbone.schedule, self.timesteps[step]))
        return decode_latents(self.backbone, edited)

    def _advance(
        self, state: InfEditState, prompts: Prompt, branches: Tensor, step: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The target's estimate of its latent after a step, and all branches noised to the next timestep."""
        t = self.timesteps[step]
        level = abar(self.backbone.schedule, t)
        noise = predict_noise(self.backbone, branches, t, prompts)
        source, source_noise = (x[: len(state.latent)].repeat(3, 1, 1, 1) for x in (branches, noise))
        missed = branches - source - (1 - level) ** 0.5 * (noise - source_noise)
        estimates = state.latent.repeat(3, 1, 1, 1) + missed / level**0.5
        edited = estimates.chunk(3)[1]
        if step + 1 == self.num_steps:
            return edited, estimates
        after = self.timesteps[step + 1]
        fresh = image_noise(state.keys, f"infedit {after}", seed, state.latent).repeat(3, 1, 1, 1)
        return edited, self.backbone.schedule.add_noise(estimates, fresh, full(after, fresh))

    def _early(self, sources: Sequence[str], targets: Sequence[str]) -> list[Rule]:
        """Target and layout have the source's structure."""
        source, target, layout = _rows(len(targets))
        text, layers = self.backbone.text, self._self_attention()
        assert text is not None, "the backbone was loaded without its text encoders"
        return [
            CrossEdit(source, target, refine_alignment(text, sources, targets)),
            SelfInjection(source, target, layers, ("queries", "keys")),
            SelfInjection(source, layout, layers, ("queries", "keys", "values")),
        ]

    def _late(self, count: int) -> list[Rule]:
        """The layout is the target's, filled with what the source shows (mutual self-attention)."""
        source, target, layout = _rows(count)
        layers = self._self_attention()
        return [
            SelfInjection(target, layout, layers, ("queries",)),
            SelfInjection(source, layout, layers, ("keys", "values")),
        ]

    def _self_attention(self) -> list[str]:
        return [name for name, layer in attention_layers(self.backbone.unet).items() if not layer.is_cross_attention]


class _Blend:
    """Outside of the places of its named words the target becomes the layout; without such words it stays.

    Places are where the target's cross attention, averaged over heads, layers and steps, is above a share of its
    maximum.
    """

    def __init__(
        self, backbone: Backbone, sources: Sequence[str], request: EditRequest, threshold: float, latent: Tensor
    ) -> None:
        text = backbone.text
        assert text is not None, "the backbone was loaded without its text encoders"
        words = request.words or (None,) * len(request.prompt)
        usable, _ = usable_words(text, sources, request.prompt, words)
        self.tokens = [
            sorted({position for word in named.target for position in named_tokens(text, prompt, word)})
            for named, prompt in zip(usable, request.prompt, strict=True)
        ]
        self.threshold = threshold
        self.maps = AttentionMaps(blend_size(backbone, latent))
        self.rules = [Capture(self.maps, _rows(len(self.tokens))[1])] if any(self.tokens) else []

    def __call__(self, branches: Tensor, level: float) -> Tensor:
        """`branches` [3 B, C, h, w] after a step at the abar `level`."""
        if not self.rules:
            return branches
        source, target, layout = branches.chunk(3)
        heat = F.interpolate(token_heat(self.maps.mean(), self.tokens), target.shape[-2:])
        inside = heat > max(self.threshold, 0.15 / level**0.5)
        unnamed = torch.tensor([not tokens for tokens in self.tokens], device=heat.device).view(-1, 1, 1, 1)
        return torch.cat([source, torch.where(inside | unnamed, target, layout), layout])


def _rows(count: int) -> tuple[Rows, Rows, Rows]:
    """Rows of the source, the target and the layout."""
    return slice(count), slice(count, 2 * count), slice(2 * count, 3 * count)
