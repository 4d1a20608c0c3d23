"""The schema of KEY.json: what every sample of a shard says about itself, and the keys themselves."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

SCHEMA = 2
"""Version of KEY.json; raised whenever the meaning of a field changes. A field that may be left out raises nothing."""

# A tar of the USTAR kind holds names of 100 bytes; the longest member suffix is far below the rest.
MAX_KEY_LENGTH = 72
_KEY = re.compile(r"[A-Za-z0-9_-]+")


IMAGES = ("png", "jpg", "webp")
"""Suffixes of pictures, the field `image`."""

_OTHER = {"caption": str, "caption_raw": str, "checks": dict}

SOURCE_IMAGES = tuple(f"source.{suffix}" for suffix in IMAGES)
"""Suffixes of the other picture of a pair, of which the edited one was made."""


@dataclass(frozen=True)
class OtherCaption:
    """A further caption of a picture that has several.

    Args:
        caption: the text that training uses.
        caption_raw: the text as the file gave it.
        checks: what the captioner noticed about it, as of the first caption.
    """

    caption: str
    caption_raw: str
    checks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleInfo:
    """Content of KEY.json, one JSON object per sample.

    Args:
        key: name of the sample, unique in its folder of shards; letters, digits, `_` and `-`.
        caption: the text that training uses; the first of several.
        caption_raw: the text as the captioner or the file gave it.
        original_size: [width, height] in pixels of the upright source image.
        crop: [left, top, width, height] of the square that was kept, in pixels of the upright source image.
        content_hash: sha256 of the source file's bytes, hexadecimal.
        source: path of the source file relative to the input folder, with forward slashes.
        extra: further columns that came with the image, plain JSON.
        checks: what the captioner noticed about the caption (lengths in tokens, whether it was condensed), plain JSON.
        schema: version of this schema.
        other_captions: the captions after the first, for training to take each in its turn; left out where there are
            none, as in the shards of earlier versions.
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
    other_captions: tuple[OtherCaption, ...] = ()

    def to_json(self) -> bytes:
        """The bytes of KEY.json."""
        content = asdict(self)
        if not self.other_captions:
            del content["other_captions"]
        # A file name that is not UTF-8 holds lone surrogates; written as escapes they come back as they were.
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")

    @staticmethod
    def from_json(text: bytes | str) -> "SampleInfo":
        """Parses KEY.json.

        Raises:
            ValueError: for text that is no JSON object, another schema version, or missing or unknown fields.
        """
        found = {"other_captions": [], **parse_info(text)}
        known = {f.name for f in fields(SampleInfo)}
        if set(found) != known:
            missing, unknown = sorted(known - set(found)), sorted(set(found) - known)
            raise ValueError(f"KEY.json lacks the fields {missing} and has the unknown fields {unknown}")
        found["original_size"] = tuple(found["original_size"])
        found["crop"] = tuple(found["crop"])
        found["other_captions"] = tuple(OtherCaption(**one) for one in _others(found))
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


def captions_of(info: Mapping[str, Any]) -> list[str]:
    """All captions of a KEY.json as a plain dict, the first one first.

    Raises:
        ValueError: its first caption is no text, or its others are not what `SampleInfo` writes.
    """
    if not isinstance(info.get("caption"), str):
        raise ValueError(f"KEY.json has the caption {info.get('caption')!r}, expected a text")
    return [info["caption"], *(other["caption"] for other in _others(info))]


def _others(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = info.get("other_captions", [])
    if not isinstance(found, list) or not all(isinstance(one, dict) and _types(one) == _OTHER for one in found):
        raise ValueError(f"KEY.json has the other captions {found!r}, expected objects of {', '.join(_OTHER)}")
    return found


def _types(found: Mapping[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in found.items()}


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
