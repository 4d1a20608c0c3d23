"""The part of a caption that a backbone reads: tokens by each of its tokenizers, and cuts that fit all of them.

CLIP's text encoders read 77 tokens, start and end among them; what a caption has beyond is lost without a word.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.errors import CaptionerError
from models.words import token_limit, word_spans

_SUBFOLDERS = ("tokenizer", "tokenizer_2")
_START_AND_END = 2
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？][」』）]*")


class TokenLimits:
    """The tokenizers of a backbone, one for Stable Diffusion and two for SDXL.

    Args:
        tokenizers: CLIP's tokenizers.
    """

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        self.tokenizers = tuple(tokenizers)
        self.limits = tuple(token_limit(tokenizer) - _START_AND_END for tokenizer in self.tokenizers)

    @classmethod
    def load(cls, backbone: str) -> "TokenLimits":
        """The tokenizers of a diffusers folder or hub id, and nothing else of it.

        Raises:
            CaptionerError: for a folder or a hub id without tokenizers.
        """
        # Here, because the command line's help and --engine existing do not need it.
        from transformers import CLIPTokenizer

        names = [name for name in _SUBFOLDERS if (Path(backbone) / name).is_dir()]
        try:
            if not Path(backbone).is_dir():
                names = [name for name in _SUBFOLDERS if name in _index(backbone)]
            tokenizers = [CLIPTokenizer.from_pretrained(backbone, subfolder=name) for name in names]
        except (OSError, ValueError) as error:
            raise CaptionerError(f"cannot load the tokenizers of --backbone {backbone}: {error}") from error
        if not tokenizers or not all(len(tokenizer) > _START_AND_END for tokenizer in tokenizers):
            raise CaptionerError(f"--backbone {backbone} has no tokenizer; give a Stable Diffusion or SDXL pipeline")
        return cls(tokenizers)

    def identity(self) -> str:
        """Hexadecimal digits that change with the tokenizers."""
        return " ".join(_digest(tokenizer) for tokenizer in self.tokenizers)

    def count(self, text: str) -> list[int]:
        """Number of tokens by each tokenizer, without start and end."""
        return [len(t(text, add_special_tokens=False, verbose=False).input_ids) for t in self.tokenizers]

    def fits(self, text: str) -> bool:
        """Whether each text encoder reads all of the text."""
        return all(found <= limit for found, limit in zip(self.count(text), self.limits))

    def cut(self, text: str) -> tuple[str, str]:
        """The beginning of a text that fits, and where it was cut: "sentence", "word", or "" for not at all.

        It ends with a sentence where this keeps at least half of what fits, else with a word.
        """
        if self.fits(text):
            return text, ""
        words = self._longest(text, [end for _, end in word_spans(text)])
        sentences = self._longest(text, [match.end() for match in _SENTENCE_END.finditer(text)])
        if 2 * len(sentences) >= len(words) > 0:
            return sentences, "sentence"
        return words.rstrip(",;:-– ，、；："), "word"

    def _longest(self, text: str, ends: Sequence[int]) -> str:
        """The longest beginning that fits, among those that end at `ends`, which rise."""
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if self.fits(text[: ends[middle]]):
                low = middle + 1
            else:
                high = middle
        return text[: ends[low - 1]] if low else ""


def _digest(tokenizer: Any) -> str:
    """Sixteen hex digits of what a tokenizer does to a text."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in found.items() if name not in ("padding", "truncation")}  # set by each call
    kept["limit"] = token_limit(tokenizer)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _index(hub_id: str) -> dict[str, Any]:
    """The model_index.json of a pipeline on the hub."""
    from huggingface_hub import hf_hub_download

    return json.loads(Path(hf_hub_download(hub_id, "model_index.json")).read_text(encoding="utf-8"))
