"""The schema of KEY.json: what every sample of a shard says about itself, and the keys themselves."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

SCHEMA = 2
"""Version of KEY.json; raised whenever the meaning of a field changes."""

# A tar of the USTAR kind holds names of 100 bytes; the longest member suffix is far below the rest.
MAX_KEY_LENGTH = 72
_KEY = re.compile(r"[A-Za-z0-9_-]+")


IMAGES = ("png", "jpg", "webp")
"""Suffixes of pictures, the field `image`."""

SOURCE_IMAGES = tuple(f"source.{suffix}" for suffix in IMAGES)
"""Suffixes of the other picture of a pair, of which the edited one was made."""


@dataclass(frozen=True)
class SampleInfo:
    """Content of KEY.json, one JSON object per sample.

    Args:
        key: name of the sample, unique in its folder of shards; letters, digits, `_` and `-`.
        caption: the text that training uses.
        caption_raw: the text as the captioner or the file gave it.
        original_size: [width, height] in pixels of the upright source image.
        crop: [left, top, width, height] of the square that was kept, in pixels of the upright source image.
        content_hash: sha256 of the source file's bytes, hexadecimal.
        source: path of the source file relative to the input folder, with forward slashes.
        extra: further columns that came with the image, plain JSON.
        checks: what the captioner noticed about the caption (lengths in tokens, whether it was condensed), plain JSON.
        schema: version of this schema.
    """

    key: str
    caption: str
    caption_raw: str
    original_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    content_hash: str
    source: str
    extra: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """The bytes of KEY.json."""
        # A file name that is not UTF-8 holds lone surrogates; written as escapes they come back as they were.
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")

    @staticmethod
    def from_json(text: bytes | str) -> "SampleInfo":
        """Parses KEY.json.

        Raises:
            ValueError: for text that is no JSON object, another schema version, or missing or unknown fields.
        """
        found = parse_info(text)
        known = {f.name for f in fields(SampleInfo)}
        if set(found) != known:
            missing, unknown = sorted(known - set(found)), sorted(set(found) - known)
            raise ValueError(f"KEY.json lacks the fields {missing} and has the unknown fields {unknown}")
        found["original_size"] = tuple(found["original_size"])
        found["crop"] = tuple(found["crop"])
        return SampleInfo(**found)


def parse_info(text: bytes | str) -> dict[str, Any]:
    """KEY.json as a plain dict, with its schema version checked.

    Raises:
        ValueError: for text that is no JSON object, or another schema version.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"KEY.json holds a {type(found).__name__}, expected an object")
    if found.get("schema") != SCHEMA:
        raise ValueError(f"KEY.json has schema version {found.get('schema')}, this code reads {SCHEMA}")
    return found


def key_of(source: str) -> str:
    """A key for a source path: readable, without the dots that end a key in WebDataset, and unique.

    The digest keeps apart what the readable part cannot (`a/b.png` and `a_b.png`).
    """
    path = PurePosixPath(source)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", str(path.with_suffix(""))).strip("-")
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{readable[-(MAX_KEY_LENGTH - 13) :].lstrip('-')}-{digest}".lstrip("-")


def check_key(key: str) -> None:
    """Raises ValueError for a key that a tar or WebDataset would not give back as it is."""
    if not _KEY.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        raise ValueError(
            f"sample key {key!r}: expected at most {MAX_KEY_LENGTH} letters, digits, '_' and '-' (data.sample.key_of)"
        )
