"""A tiny random SANA-Sprint pipeline folder, made offline of the stock classes."""

from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from models.sana import INSTRUCTION
from tests.tiny_backbones import shake
from tests.true_sizes import write_configs


def save_tiny_sana(folder: Path) -> None:
    """Saves a random pipeline like SANA-Sprint's: 64 px images, latents [32, 16, 16], text read by letters."""
    tokenizer = _tokenizer()
    pipeline = SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(tokenizer),
        vae=_vae(),
        transformer=_transformer(),
        scheduler=SCMScheduler(),
    )
    pipeline.save_pretrained(folder)


def _vae() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=32,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )


def _transformer() -> SanaTransformer2DModel:
    network = SanaTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    shake(network, 0.1)
    return network


def _text_encoder(tokenizer: GemmaTokenizer) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=4096,
        )
    ).eval()


def _tokenizer() -> GemmaTokenizer:
    """Gemma's tokenizer over single letters, but for the lines of SANA's instruction, which are a token each."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*special, "▁", "\n", *(chr(code) for code in range(33, 127))]
    tokenizer = GemmaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], add_bos_token=True)
    tokenizer.add_tokens([line for line in INSTRUCTION if line.strip()])
    return tokenizer


def write_sana_configs(folder: Path) -> Path:
    """SANA-Sprint 0.6B's config files of its true sizes, without weights or a vocabulary; returns `folder`."""
    text = Gemma2Config(
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    )
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    with torch.device("meta"):
        vae = AutoencoderDC(
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        )
        transformer = SanaTransformer2DModel(
            num_attention_heads=36,
            attention_head_dim=32,
            num_layers=28,
            num_cross_attention_heads=16,
            cross_attention_head_dim=72,
            cross_attention_dim=1152,
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
        )
    scheduler = SCMScheduler()
    return write_configs(
        folder, "SanaSprintPipeline", text_encoder=text, vae=vae, transformer=transformer, scheduler=scheduler
    )
