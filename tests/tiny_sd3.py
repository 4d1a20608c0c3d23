"""A tiny random pipeline folder like Stable Diffusion 3.5's, made offline of the stock classes."""

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from tests.tiny_backbones import TEXT_WIDTH, clip_text_encoder, letter_tokenizer

CHANNELS = 8
"""Channels of a latent: not the four of Stable Diffusion, so that no code counts on them."""

T5_WIDTH = 2 * TEXT_WIDTH + 8


def save_tiny_sd3(folder: Path, with_t5: bool = True) -> None:
    """Save a random pipeline of about 60,000 weights for pictures of 64 px; torch's seed decides them."""
    tokenizers = [letter_tokenizer(folder / "vocab") for _ in range(2)]
    encoders = [clip_text_encoder(CLIPTextModelWithProjection, one) for one in tokenizers]
    pipeline = StableDiffusion3Pipeline(
        transformer=_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=t5_encoder(T5_WIDTH) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )
    pipeline.save_pretrained(folder)


def t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer over single letters."""
    letters = [(chr(code), -4.0) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5_encoder(width: int) -> T5EncoderModel:
    """A T5 of one layer."""
    config = T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def _transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=CHANNELS,
        sample_size=64,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )
