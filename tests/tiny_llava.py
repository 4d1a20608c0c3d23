"""Random LLaVAs of a few thousand weights, made offline of the stock classes. They answer noise, but their own."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

SIDE, PATCH = 32, 8
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'USER:' if message['role'] == 'user' else 'ASSISTANT:' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>\n{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As in LLaVA 1.5's processor on the hub: "USER: <image>\\nTEXT ASSISTANT:"."""


_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def save_tiny_llava(folder: Path, seed: int = 5, chat_template: str | None = CHAT_TEMPLATE) -> str:
    """Saves LLaVA 1.5 with its processor; the weights are those of `seed`. Returns the folder's path."""
    tokenizer = _letter_tokenizer()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
        tokenizer=tokenizer,
        chat_template=chat_template,
        **_PROCESSOR,
    )
    return _save(LlavaForConditionalGeneration(LlavaConfig(**_parts(tokenizer))), processor, folder, seed)


def save_tiny_llava_next(folder: Path, seed: int = 3) -> str:
    """Saves LLaVA 1.6 with its processor, which cuts pictures into tiles, more of them for larger ones."""
    tokenizer = _letter_tokenizer()
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=_PINPOINTS
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        **_PROCESSOR,
    )
    config = LlavaNextConfig(**_parts(tokenizer), image_grid_pinpoints=_PINPOINTS)
    return _save(LlavaNextForConditionalGeneration(config), processor, folder, seed)


_PROCESSOR: dict[str, Any] = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "image_token": "<image>",
}


def _parts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The configuration that both kinds share."""
    language = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2, **_SIZE
    )
    return {
        "vision_config": CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **_SIZE),
        "text_config": language,
        "image_token_index": SPECIAL.index("<image>"),
        "image_seq_length": (SIDE // PATCH) ** 2,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path, seed: int) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in model.parameters():  # larger than training would start with, so that answers differ
            weight.data.normal_(0, 0.25)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _letter_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each printable ASCII character; it pads on the right by default, as many a model on the hub."""
    words = [*SPECIAL, "Ġ", "Ċ", *map(chr, range(33, 127))]  # space and line feed as ByteLevel writes them
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
        model_max_length=1024,
    )
