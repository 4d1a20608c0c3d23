"""Config files alone of the FLUX pipelines at their real size, for plans: no weight is made."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, Qwen3Config, T5Config

_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}


def write_flux_configs(folder: Path) -> None:
    """FLUX.1-schnell's: 12 billion weights in the transformer, 4.8 in T5."""
    with torch.device("meta"):
        networks = {
            "transformer": FluxTransformer2DModel(),
            "vae": AutoencoderKL(
                **_BLOCKS,
                latent_channels=16,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        }
    encoders = {
        "text_encoder": (
            "CLIPTextModel",
            CLIPTextConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072),
        ),
        "text_encoder_2": (
            "T5EncoderModel",
            T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64, feed_forward_proj="gated-gelu"),
        ),
    }
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}
    _write(folder, "FluxPipeline", networks, encoders, tokenizers, FlowMatchEulerDiscreteScheduler(shift=1.0))


def write_klein_configs(folder: Path) -> None:
    """FLUX.2-klein 4B's: 3.9 billion weights in the transformer, 4.0 in Qwen3."""
    with torch.device("meta"):
        networks = {
            "transformer": Flux2Transformer2DModel(
                num_layers=5,
                num_single_layers=20,
                num_attention_heads=24,
                joint_attention_dim=7680,
                guidance_embeds=False,
            ),
            "vae": AutoencoderKLFlux2(**_BLOCKS),
        }
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    encoders = {"text_encoder": ("Qwen3ForCausalLM", config)}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    _write(folder, "Flux2KleinPipeline", networks, encoders, {"tokenizer": "Qwen2TokenizerFast"}, scheduler)


def _write(folder: Path, name: str, networks: Any, encoders: Any, tokenizers: Any, scheduler: Any) -> None:
    index: dict[str, Any] = {"_class_name": name, "scheduler": ["diffusers", type(scheduler).__name__]}
    scheduler.save_config(folder / "scheduler")
    for part, network in networks.items():
        network.save_config(folder / part)
        index[part] = ["diffusers", type(network).__name__]
    for part, (kind, config) in encoders.items():
        config.save_pretrained(folder / part)
        index[part] = ["transformers", kind]
    index |= {part: ["transformers", kind] for part, kind in tokenizers.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
