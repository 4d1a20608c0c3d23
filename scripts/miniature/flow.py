"""The flow student: a rectified-flow transformer of Stable Diffusion 3's class that learned the student's function.

The student sees x_t = a x0 + b eps and the flow x_s = (1 - s) x0 + s eps. With s = b / (a + b) these are one point but
for a factor, so that the flow can be asked for the very x0 that the student says there: a regression without noise in
its target, and no adversary or second network.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from models.backbone import Backbone, freeze
from models.generator import FewStepGenerator
from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from models.sd3 import T5_TOKENS, Sd3Text
from models.shapes import SizeConditioning
from models.text import Prompt
from scripts.miniature.parts import SIDE, TEXT_WIDTH, save_half
from train.exports.pipeline import forget_paths
from train.rng import StepRandom
from train.task import Batch, StepLoss

WIDTH, HEAD, LAYERS = 128, 32, 8


def build_transformer() -> SD3Transformer2DModel:
    """A small SD3Transformer2DModel of both CLIPs' tokens: 64 patches of the latent, as 3.5 with norms of queries.

    Its blocks begin as the identity (adaLN-zero of DiT, arXiv 2212.09748) and its output as zero.
    """
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD,
        num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=SIDE // 8,
        qk_norm="rms_norm",
    )
    blocks: list[Any] = list(transformer.transformer_blocks)
    gates = [norm.linear for block in blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*gates, transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_text(student: Backbone) -> Sd3Text:
    """The student's two encoders as the pipeline of Stable Diffusion 3 has them: the first gets a projection, 1."""
    assert student.text is not None, "the student was loaded with its text encoders"
    first, second = student.text.encoders
    projected = CLIPTextModelWithProjection(first.config)
    projected.text_model.load_state_dict(first.state_dict())
    nn.init.eye_(projected.text_projection.weight)
    text = Sd3Text(student.text.tokenizers, (freeze(projected.to(second.device)), second))
    text.pad_to(2 * TEXT_WIDTH)
    return text


def save_flow(folder: Path, transformer: SD3Transformer2DModel, text: Sd3Text, student: Path) -> None:
    """Write the pipeline in half precision; VAE, second encoder and tokenizers are links to the student's."""
    save_half(transformer, folder / "transformer")
    save_half(text.encoders[0], folder / "text_encoder")
    FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).save_pretrained(folder / "scheduler")
    vae = json.loads((student / "vae" / "config.json").read_text())
    (folder / "vae").mkdir(exist_ok=True)
    (folder / "vae" / "config.json").write_text(json.dumps(vae | {"shift_factor": 0.0}, indent=2) + "\n")
    weights = "diffusion_pytorch_model.safetensors"
    links = [(folder / "vae" / weights, Path("..", "..", student.name, "vae", weights))]
    links += [
        (folder / name, Path("..", student.name, name)) for name in ("text_encoder_2", "tokenizer", "tokenizer_2")
    ]
    for link, target in links:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    classes = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "transformer": ("diffusers", "SD3Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
        **dict.fromkeys(("text_encoder_3", "tokenizer_3", "feature_extractor", "image_encoder"), (None, None)),
    }
    index = {"_class_name": "StableDiffusion3Pipeline", "_diffusers_version": diffusers.__version__}
    (folder / "model_index.json").write_text(json.dumps({**index, **classes}, indent=2) + "\n")
    forget_paths(folder)


def sigmas_of(schedule: NoiseSchedule, timesteps: Sequence[int] = TURBO_TIMESTEPS) -> list[float]:
    """The s = b / (a + b) at which a flow sees what a variance-preserving model sees at `timesteps`; 1 at the first.

    At the first the student is given noise alone, b eps, as the estimate before it is zero.
    """
    ones = torch.ones(len(timesteps), dtype=torch.float64)
    a, b = schedule.coefficients(torch.tensor(timesteps), ones)
    return [1.0, *(b / (a + b)).tolist()[1:]]


class RepeatedTokenAttention:
    """SD3's joint attention where the last token of the text stands for `count` equal ones.

    Without T5 the stock pipeline appends 256 tokens of zeros, which stay equal in all layers, as text has no places.
    One with log(count) added to its logits is all of them, for a third of the work.

    Args:
        count: number of the equal tokens.
    """

    def __init__(self, count: int) -> None:
        self.bias = math.log(count)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """(states of the picture [B, n, D], of the text [B, L, D]) behind the attention."""

        def heads(states: Tensor, projection: nn.Module, norm: nn.Module | None) -> Tensor:
            split = projection(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        def both(own: str, text: str) -> Tensor:
            pairs = ((hidden_states, f"to_{own}", f"norm_{own}"), (encoder_hidden_states, text, f"norm_added_{own}"))
            return torch.cat([heads(x, getattr(attn, to), getattr(attn, norm, None)) for x, to, norm in pairs], dim=2)

        query, key, value = both("q", "add_q_proj"), both("k", "add_k_proj"), both("v", "add_v_proj")
        bias = torch.zeros(key.shape[2], dtype=key.dtype, device=key.device)
        bias[-1] = self.bias
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(1, 1, key.shape[2], -1))
        image, text = (
            mixed.transpose(1, 2).flatten(2).split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        )
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


class FlowTask:
    """A flow learns the x0 that the student predicts, where inversion and sampling ask for it.

    Args:
        transformer: What `build_transformer` gives.
        student: The student.
        text: The flow's prompts, of which only the first of T5's zeros is kept.
        data_share: Share of inputs that are noised pictures of the data and not the student's own estimates.
    """

    fields: tuple[str, ...] = ("latent", "caption")
    groups: tuple[str, ...] = tuple(f"t{t}" for t in TURBO_TIMESTEPS)

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        student: Backbone,
        text: Sd3Text,
        data_share: float = 0.5,
    ) -> None:
        transformer.set_attn_processor(RepeatedTokenAttention(T5_TOKENS))
        self.trainable: nn.Module = transformer
        self.transformer = transformer
        self.student = FewStepGenerator(student)
        self.text = text
        self.sigmas = torch.tensor(sigmas_of(student.schedule), dtype=torch.float32)
        self.data_share = data_share

    def points(self, x0: Tensor, prompt: Prompt, rng: StepRandom) -> tuple[Tensor, Tensor]:
        """(x_s, the student's x0 there) of all timesteps below each other, each [4B, 4, h, w]."""
        student, estimate = self.student, torch.zeros_like(x0)
        seen, said = [], []
        for step, timestep in enumerate(student.timesteps):
            noise = rng.normal(f"step {step}", x0.shape[1:])
            data = (rng.uniform(f"data {step}") < self.data_share).to(x0.device)[:, None, None, None] & (step > 0)
            t = torch.full((len(x0),), timestep, device=x0.device)
            x_t = student.schedule.add_noise(torch.where(data, x0, estimate), noise, t)
            estimate = student.predict_x0(x_t, prompt, t)
            a, b = student.schedule.coefficients(t, x0)
            seen.append(noise if step == 0 else x_t / (a + b))
            said.append(estimate)
        return torch.cat(seen), torch.cat(said)

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Squared error of x0 = x_s - s v at all four timesteps, over s."""
        x0: Tensor = batch["latent"]
        with torch.no_grad():
            x_s, target = self.points(x0, self.student.backbone.encode_text(batch["caption"]), rng)
            prompt = self.text(batch["caption"], SizeConditioning.uncropped(SIDE, SIDE))
        assert prompt.pooled is not None, "both CLIPs pool"
        s = self.sigmas.to(x0.device).repeat_interleave(len(x0))
        tokens = prompt.embeds.shape[1] - T5_TOKENS + 1
        output = model(
            hidden_states=x_s,
            encoder_hidden_states=prompt.embeds[:, :tokens].repeat(len(self.sigmas), 1, 1),
            pooled_projections=prompt.pooled.repeat(len(self.sigmas), 1),
            timestep=1000 * s,
        ).sample.float()
        error = (x_s - s[:, None, None, None] * output - target).square().flatten(1).mean(1)
        by_step = error.detach().view(len(self.sigmas), -1)
        figures = {f"x0_error_{t}": row.mean() for t, row in zip(TURBO_TIMESTEPS, by_step, strict=True)}
        return StepLoss({"mse": (error / s).mean()}, figures)

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """One step from the same noise beside the student's."""
        x0: Tensor = batch["latent"]
        backbone, noise = self.student.backbone, rng.normal("noise", x0.shape[1:])
        prompt = self.text(batch["caption"], SizeConditioning.uncropped(SIDE, SIDE))
        output = model(
            hidden_states=noise,
            encoder_hidden_states=prompt.embeds[:, : prompt.embeds.shape[1] - T5_TOKENS + 1],
            pooled_projections=prompt.pooled,
            timestep=torch.full((len(x0),), 1000.0, device=x0.device),
        ).sample.float()
        t = torch.full((len(x0),), TURBO_TIMESTEPS[0], device=x0.device)
        x_t = self.student.schedule.add_noise(torch.zeros_like(x0), noise, t)
        own = self.student.predict_x0(x_t, backbone.encode_text(batch["caption"]), t)
        return {name: backbone.decode(latent) for name, latent in {"student": own, "flow": noise - output}.items()}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means
