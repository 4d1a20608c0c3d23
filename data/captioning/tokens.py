"""The part of a caption that a backbone reads: tokens by each of its tokenizers, and cuts that fit all of them.

CLIP's text encoders read 77 tokens, start and end among them; what a caption has beyond is lost without a word. Of a
family with longer texts those tokenizers count whose encoders have to read all of them (T5, Qwen, Gemma).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.errors import CaptionerError
from models.words import Reader, clip_readers, word_spans

_SUBFOLDERS = ("tokenizer", "tokenizer_2")
_START_AND_END = 2
_OPTIONS = (
    *("unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)
"""Options of a tokenizer's model that decide token numbers. Those that are not set are not hashed, so that a library
that does not know one of them yet says the same."""

_FORMER = re.compile(r"[0-9a-f]{16}( [0-9a-f]{16})*")

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？][」』）]*")


class TokenLimits:
    """The tokenizers of a backbone, one for Stable Diffusion and two for SDXL.

    Args:
        tokenizers: CLIP's tokenizers.
    """

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        self._readers = clip_readers(tokenizers)
        self.tokenizers = tuple(tokenizers)
        self.limits = tuple(reader.tokens for reader in self._readers)

    @classmethod
    def of(cls, readers: Sequence[Reader]) -> "TokenLimits":
        """The tokenizers of any family with their own limits."""
        made = cls(())
        made._readers, made.tokenizers = tuple(readers), tuple(reader.tokenizer for reader in readers)
        made.limits = tuple(reader.tokens for reader in readers)
        return made

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
            index = _index(backbone)
            if index and index.get("unet", [None])[0] is None:  # an export of a transformer names an empty one
                return cls.of(_readers(backbone))
            if not Path(backbone).is_dir():
                names = [name for name in _SUBFOLDERS if name in index]
            tokenizers = [CLIPTokenizer.from_pretrained(backbone, subfolder=name) for name in names]
        except (OSError, ValueError) as error:
            raise CaptionerError(f"cannot load the tokenizers of --backbone {backbone}: {error}") from error
        if not tokenizers or not all(len(tokenizer) > _START_AND_END for tokenizer in tokenizers):
            raise CaptionerError(f"--backbone {backbone} has no tokenizer; give a diffusers pipeline")
        return cls(tokenizers)

    def identity(self) -> str:
        """A name for each tokenizer, `kind:digits`, that changes with what it does to a text and with nothing else."""
        return " ".join(
            tokenizer_name(reader.tokenizer.backend_tokenizer.to_str(), reader.limit) for reader in self._readers
        )

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


def tokenizer_name(serialised: str, limit: int) -> str:
    """The name of a tokenizer, the same under every version of the libraries: `kind:digits`.

    Args:
        serialised: The tokenizer as the tokenizers library writes it, in JSON.
        limit: Number of tokens that its text encoder reads.
    """
    found = json.loads(serialised)
    model = found["model"]
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    decisive = {
        "vocabulary": dict(model["vocab"]) | added,  # pairs with their scores in T5's
        # Pairs were texts, with a blank between the two, before tokenizers 0.20.
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])],
        "options": {name: model[name] for name in _OPTIONS if model.get(name)},
        "normalizer": _kinds(found.get("normalizer")),
        "pre_tokenizer": _kinds(found.get("pre_tokenizer")),
        "special": sorted(token["content"] for token in found["added_tokens"] if token["special"]),
        "limit": limit,
    }
    digits = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    return f"{model['type']}:{digits}"


def is_former_identity(text: str) -> bool:
    """Whether tokenizers are named as before this form, by all that the installed library wrote of them."""
    return _FORMER.fullmatch(text) is not None


def _kinds(part: dict[str, Any] | None) -> list[str]:
    """Kinds of the steps of a normaliser or a pre-tokenizer, in their order."""
    if part is None:
        return []
    steps = part.get("normalizers", part.get("pretokenizers"))
    return [part["type"]] if steps is None else [kind for step in steps for kind in _kinds(step)]


def _readers(backbone: str) -> Sequence[Reader]:
    """The tokenizers of a pipeline that is no Stable Diffusion's of before 3, as its family says."""
    # Here: torch and diffusers take seconds, which the others spare.
    from models.families import family_of_index
    from models.pipeline_files import PipelineFiles, index_of

    files = PipelineFiles(backbone, index_of(backbone))
    family = family_of_index(backbone, files.index)
    return family.readers_of([files.tokenizer(kind, n) for n, kind in family.TOKENIZERS.items() if files.has(n)])


def _index(backbone: str) -> dict[str, Any]:
    """The model_index.json of a folder or of a pipeline on the hub; nothing of a folder without one."""
    from huggingface_hub import hf_hub_download

    if Path(backbone).is_dir():
        path = Path(backbone) / "model_index.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return json.loads(Path(hf_hub_download(backbone, "model_index.json")).read_text(encoding="utf-8"))
