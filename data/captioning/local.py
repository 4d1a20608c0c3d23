"""A captioner in this process: any image-and-text model of transformers, such as LLaVA 1.5, 1.6 and OneVision.

The model's own processor and chat template make its input, so no model needs a word here.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from data.captioning.interface import Generation, Request
from data.jobs.device import choose_device
from data.jobs.errors import CaptionerError

logger = logging.getLogger(__name__)

_PROCESSOR_FILES = (
    ("config.json",),
    ("preprocessor_config.json",),
    ("tokenizer.json", "tokenizer.model", "vocab.json"),
    ("tokenizer_config.json",),
    ("chat_template.jinja", "chat_template.json"),
)
"""Files that a processor is made of, each with those that may stand for it."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class LocalCaptioner:
    """A model in this process's memory.

    Pictures and texts alone may be mixed in one call; each kind makes its own batches. Batches are padded on the left,
    so that an answer does not depend on its neighbours (but for rounding).

    Args:
        model: folder or hub id; HF_HUB_OFFLINE is respected.
        generation: how answers are written.
        batch: requests in one forward pass.
        dtype: precision of the weights; "auto" is bfloat16 on CUDA and float32 elsewhere.
        device: "auto" is this process's own GPU if there is one, else the CPU.

    Raises:
        CaptionerError: for a model that is missing, is no image-and-text model or lacks what its processor needs.
    """

    def __init__(
        self,
        model: str,
        generation: Generation | None = None,
        *,
        batch: int = 16,
        dtype: Dtype = "auto",
        device: str = "auto",
    ) -> None:
        self.generation = generation or Generation()
        self.batch = batch
        self._name = model
        self._device = choose_device(device)
        self._dtype = choose_dtype(dtype, self._device)
        self._processor = load_processor(model)
        self._model = _load_model(model, self._device, self._dtype)

    def identity(self) -> dict[str, Any]:
        """Do as every `Captioner` does."""
        return identity(self._name, self.generation, self._dtype)

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """Do as every `Captioner` does."""
        answers = [""] * len(requests)
        for rows in _alike(requests, self.batch):
            for row, text in zip(rows, self._answer_batch([requests[row] for row in rows])):
                answers[row] = text
        return answers

    @torch.inference_mode()
    def _answer_batch(self, requests: Sequence[Request]) -> list[str]:
        """Answers to requests that all have a picture, or all have none."""
        inputs = _inputs(self._processor, requests).to(self._device, self._dtype)
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.generation.temperature:
            settings = {"do_sample": True, "temperature": self.generation.temperature, "top_p": self.generation.top_p}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self.generation.seed_of(requests))
            try:
                ids = self._model.generate(
                    **inputs,
                    **settings,
                    max_new_tokens=self.generation.max_new_tokens,
                    pad_token_id=self._processor.tokenizer.pad_token_id,
                )
            except torch.cuda.OutOfMemoryError as error:
                raise CaptionerError(
                    f"out of memory with {len(requests)} requests at once on {self._device}; lower --batch and run "
                    "again (units that are done stay)"
                ) from error
        written = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.batch_decode(written, skip_special_tokens=True)]


def identity(model: str, generation: Generation, dtype: torch.dtype) -> dict[str, Any]:
    """All that decides the answers of a local model; does not load it."""
    return {
        "engine": "transformers",
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "model_digest": folder_digest(Path(model)) if Path(model).is_dir() else None,
        "dtype": str(dtype).removeprefix("torch."),
        **generation.identity(),
    }


def folder_digest(folder: Path) -> str:
    """Sixteen hex digits that change with the files of a model, at a glance: of large files, 64 pieces are read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        if name.startswith(".") or "/." in name:
            continue
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(64):
                file.seek(piece * size // 64)
                digest.update(file.read(min(1 << 16, (piece + 1) * size // 64 - file.tell())))
    return digest.hexdigest()[:16]


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def load_processor(model: str) -> Any:
    """What prepares a model's pictures and texts, tried on one of each; loads no weights.

    Raises:
        CaptionerError: for a model that is missing, takes no pictures or lacks what its processor needs.
    """
    _load(AutoConfig, model)
    try:
        processor = _load(AutoProcessor, model)
    except CaptionerError:
        raise
    except Exception as error:  # a broken tokenizer.json gives an Exception without a class of its own
        raise CaptionerError(_unprepared(model, error)) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise CaptionerError(
            f"{model} takes no pictures: its processor is a {type(processor).__name__}{_lacks(model)} (--model)"
        )
    if not processor.chat_template:
        raise CaptionerError(
            f"{model} has no chat template, so nobody knows how it wants to be asked; take a model that has one "
            "(those of llava-hf on the hub do), or put a chat_template.jinja into its folder (--model)"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    picture = Image.new("RGB", (64, 64))
    try:
        _inputs(processor, [Request("a picture", picture), Request("another one", picture)])
    except Exception as error:  # whatever a processor meets that lacks a setting
        raise CaptionerError(_unprepared(model, error)) from error
    return processor


def _inputs(processor: Any, requests: Sequence[Request]) -> Any:
    """The model's inputs, padded on the left."""
    tokenizer = processor.tokenizer
    turns = []
    for request in requests:
        picture = [] if request.image is None else [{"type": "image"}]
        text = {"type": "text", "text": _plain(processor, request.text)}
        turns.append([{"role": "user", "content": [*picture, text]}])
    texts = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    pictures = {} if requests[0].image is None else {"images": [[request.image] for request in requests]}
    return processor(text=texts, **pictures, padding=True, return_tensors="pt", add_special_tokens=not begun)


def _plain(processor: Any, text: str) -> str:
    """The text without words that would be read as control tokens, such as a picture's place."""
    tokenizer = processor.tokenizer
    for token in {*tokenizer.all_special_tokens, getattr(processor, "image_token", "")} - {""}:
        text = text.replace(token, " ")
    return text


def _unprepared(model: str, error: Exception) -> str:
    told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"the processor of {model} cannot prepare a picture with a text ({told}){_lacks(model)}; the folder needs all "
        "files of the model it comes from, not its weights alone (--model)"
    )


def _lacks(model: str) -> str:
    """Words on what a model's folder lacks of what processors are made of; none for a hub id or a whole folder."""
    folder = Path(model)
    if not folder.is_dir():
        return ""
    names = {path.name for path in folder.iterdir()}
    with suppress(OSError, ValueError, TypeError):
        if "image_processor" in json.loads((folder / "processor_config.json").read_text("utf-8")):
            names.add("preprocessor_config.json")  # newer versions of transformers write it there
    lacking = [" or ".join(files) for files in _PROCESSOR_FILES if not names & set(files)]
    return f"; it lacks {', '.join(lacking)}" if lacking else ""


def _load_model(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    network = _load(AutoModelForImageTextToText, model, dtype=dtype)
    try:
        network = network.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise CaptionerError(f"{model} does not fit on {device}; take a smaller --model or --engine server") from error
    logger.info("%s on %s in %s", model, device, str(dtype).removeprefix("torch."))
    return network.requires_grad_(False).eval()


def _load(kind: Any, model: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError) as error:
        offline = " (HF_HUB_OFFLINE is set: only what is in the cache is found)" if _is_offline() else ""
        raise CaptionerError(
            f"cannot load {model!r}: {' '.join(str(error).split())[:300]}{_lacks(model)}; --model is a folder or a hub "
            f"id of an image-and-text model, such as llava-hf/llava-1.5-7b-hf{offline}"
        ) from error


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _alike(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Rows of requests in batches: with pictures or without, and of like length, so that little is padded."""
    for pictured in (True, False):
        rows = [row for row, request in enumerate(requests) if (request.image is not None) == pictured]
        rows.sort(key=lambda row: len(requests[row].text))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
