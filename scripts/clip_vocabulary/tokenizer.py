"""The tokenizers of CLIP and SDXL, made from CLIP's merges as OpenAI published them.

merges.txt.gz holds those of the 262,144 lines of bpe_simple_vocab_16e6.txt (github.com/openai/CLIP, SHA-256 of the .gz
924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a) that CLIP uses, the first 48,894.
"""

import gzip
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from models.words import CLIP_TOKENS

MERGES = Path(__file__).parent / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(padding: str = END, limit: int | None = CLIP_TOKENS) -> CLIPTokenizer:
    """CLIP's tokenizer of 49,408 entries.

    Args:
        padding: Token of the padding; that of SDXL's second text encoder is "!".
        limit: Tokens that it reads; None names no limit, as a tokenizer without a config.
    """
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    named = {} if limit is None else {"model_max_length": limit}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding, **named)
