"""The miniature's networks before training: stock diffusers and transformers classes at small sizes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from data.jobs.files import open_as_usual
from data.shards.dataset import ShardDataset

SIDE = 64
MAX_TOKENS = 48
TEXT_WIDTH = 128
VOCABULARY = 600
UNET_WIDTHS = (64, 96, 96)
VAE_WIDTHS = (24, 48, 64)
START, END = "<|startoftext|>", "<|endoftext|>"

# Stable Diffusion's betas; v prediction, as a young model in epsilon form is hopeless at t = 999.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from `captions`; it works on bytes, so any text has tokens."""
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Keyword arguments of a CLIPTextConfig for `tokenizer`."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIP of 64-pixel pictures and captions."""
    vision = CLIPVisionConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(**text_config(tokenizer)).to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=TEXT_WIDTH,
        )
    )


def build_vae() -> AutoencoderKL:
    """64 pixels to a 4 x 16 x 16 latent. Its scaling factor is set after training, from its latents' deviation."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=SIDE,
        force_upcast=False,
    )


def unet_config() -> dict[str, Any]:
    """A small UNet2DConditionModel: cross attention at 8x8 and 4x4, none at 16x16 (SDXL's pattern)."""
    return {
        "sample_size": SIDE // 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": UNET_WIDTHS,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 16,
        "cross_attention_dim": TEXT_WIDTH,
    }


def build_teacher_unet() -> UNet2DConditionModel:
    """Stable-Diffusion-like: one text encoder, no further conditioning."""
    return UNet2DConditionModel(**unet_config())


def build_student_unet(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """SDXL-like: two text encoders side by side, pooled text and size conditioning; all that fits is the teacher's.

    Keys and values start with the teacher's weights for the first encoder and zeros for the second.
    """
    config = unet_config() | {
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 32,
    }
    student = UNet2DConditionModel(**config)
    state = student.state_dict()
    for name, weight in teacher.state_dict().items():
        if state[name].shape == weight.shape:
            state[name] = weight.clone()
        else:
            state[name].zero_()
            state[name][:, : weight.shape[1]] = weight
    state["add_embedding.linear_2.weight"].zero_()
    state["add_embedding.linear_2.bias"].zero_()
    student.load_state_dict(state)
    return student


def teacher_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with DDIM steps."""
    return DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)


def student_scheduler(prediction_type: str = "v_prediction") -> EulerAncestralDiscreteScheduler:
    """SDXL-Turbo's stock scheduler."""
    return EulerAncestralDiscreteScheduler(**SCHEDULE | {"prediction_type": prediction_type})


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, dataset: ShardDataset, count: int = 1_024) -> float:
    """The factor that gives latents of `count` pictures unit standard deviation."""
    images = dataset.read_batch(range(min(count, len(dataset))))["image"]
    latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in images.split(64)])
    return round(1 / latents.std().item(), 5)


def save_half(module: Any, folder: Path) -> None:
    """Save a diffusers or transformers model in fp16 safetensors; the module itself keeps its precision."""
    dtype = next(module.parameters()).dtype
    module.half().save_pretrained(folder, safe_serialization=True)
    open_as_usual(folder)
    module.to(dtype)
