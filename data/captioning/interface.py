"""The interface of captioners: something that answers a text about a picture, or a text alone."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Args:
        text: the prompt.
        image: the RGB picture that it is about, or None.
    """

    text: str
    image: Image.Image | None = None


class NoAnswer(str):
    """The answer that a request did not get: an empty text that knows why.

    Args:
        reason: a few fixed words that can be counted, such as "refused by the server".
        detail: what exactly happened.
    """

    reason: str
    detail: str

    def __new__(cls, reason: str, detail: str = "") -> "NoAnswer":
        """Make an empty text."""
        found = super().__new__(cls, "")
        found.reason, found.detail = reason, detail
        return found


class Captioner(Protocol):
    """A model that answers requests."""

    def identity(self) -> dict[str, Any]:
        """All that decides the answers (engine, model, generation settings), as flat plain JSON."""

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One answer a request, in their order; "" is a possible answer, and NoAnswer stands for one that failed.

        Raises:
            CaptionerError: when no request can be answered.
        """


@dataclass(frozen=True)
class Generation:
    """Settings with which a model writes its answers.

    Args:
        max_new_tokens: length at which an answer is cut off, in the model's own tokens.
        temperature: 0 takes the likeliest token each time, so that the same picture gives the same answer.
        top_p: share of the likeliest tokens to draw from, where the temperature is above 0.
        seed: decides the draws, where the temperature is above 0.

    Raises:
        ValueError: for values out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.temperature < 0:
            raise ValueError(f"--temperature is {self.temperature}, expected 0 (no chance) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p}, expected more than 0 and at most 1")

    def seed_of(self, requests: Sequence[Request]) -> int:
        """Derive a seed below 2**31 from `seed` and the requests: other requests get other draws, the same the same."""
        digest = zlib.crc32(str(self.seed).encode())
        for request in requests:
            digest = zlib.crc32(request.text.encode("utf-8", "surrogateescape"), digest)
            if request.image is not None:
                digest = zlib.crc32(request.image.tobytes(), digest)
        return digest & 0x7FFF_FFFF  # what any server takes for a seed

    def identity(self) -> dict[str, Any]:
        """The settings that decide the answers, as flat plain JSON."""
        return asdict(self) if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}
