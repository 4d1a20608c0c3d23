"""WebDataset shards as a source of pictures, in img2dataset's layout: KEY.jpg (png, webp ...), KEY.txt, KEY.json."""

import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.jobs.errors import ShardError
from data.pictures.images import SUFFIXES
from data.pictures.source import (
    NO_HASH,
    CaptionPolicy,
    DamagedInput,
    Input,
    NotTaken,
    SourcePart,
    content_hash,
    digest_of_names,
)

_NOWHERE = (-1, 0)
_KINDS = ("picture", "text", "columns")
_ENDINGS = {"txt": "text", "caption": "text", "json": "columns"} | {suffix[1:]: "picture" for suffix in SUFFIXES}
_SURVEY = 2
"""Version of what a survey says of a tar; raised whenever other members are taken."""

# Members of a sample lie side by side: a header, an extended one and the padding before them are at most 2,047 bytes.
_MERGE_GAP = 2048


class TarSource:
    """The pictures of a folder of tars.

    An input is called TAR/MEMBER. A key without a picture, and a tar that cannot be read to its end, are inputs too,
    so that they are counted as damage.

    Args:
        root: the folder.
        tars: sorted names of the tars.
        policy: what is taken where there are several captions.
        beside: files of the folder that are none of the tars.
    """

    needs_survey = True
    counted = "tar"

    def __init__(
        self,
        root: Path,
        tars: Sequence[str],
        policy: CaptionPolicy | None = None,
        beside: NotTaken | None = None,
    ) -> None:
        self.root = root
        self.not_taken = beside or NotTaken()
        self._policy = policy or CaptionPolicy()
        self.names: Sequence[str] = []
        self.digests: Mapping[str, str] = {"tars": digest_of_names(tars)}
        self._tars = tars
        self._tar = np.zeros(0, np.int32)
        self._spans = np.zeros((0, 3, 2), np.int64)
        self._broken: dict[int, str] = {}
        self._open = threading.local()

    def read(self, number: int) -> Input:
        """Read a picture and what lies beside it, as every `Source` does.

        Raises:
            DamagedInput: "broken shard" (the tar itself), "truncated shard", "cannot be read", "no picture", "bad json"
                or "caption is not UTF-8".
        """
        if number in self._broken:
            raise DamagedInput("broken shard", self._broken[number])
        picture, text, columns = ((int(at), int(size)) for at, size in self._spans[number])
        if picture == _NOWHERE:
            raise DamagedInput("no picture")
        content, caption, row = self._members(self._tars[self._tar[number]], [picture, text, columns])
        found = _parse_columns(row)
        captions = self._policy.of_columns(found)
        if text != _NOWHERE:
            captions = [self._policy.of_file(caption)]
        return Input(content, captions[0] if captions else None, found, tuple(captions[1:]))

    def texts_digest(self, numbers: Sequence[int], pool: Executor) -> str:
        """Captions lie in the tars."""
        return ""

    def parts(self) -> list[SourcePart]:
        """One for each tar."""
        digests = []
        for name in self._tars:
            try:
                facts = (self.root / name).stat()
                digests.append(f"{name} {facts.st_size} {facts.st_mtime_ns} {_SURVEY}")
            except OSError as error:
                digests.append(f"{name} {error.strerror}")
        return [SourcePart(digest, 1) for digest in digests]

    def survey(self, part: int, hashed: bool, pool: Executor, beat: Callable[[], None]) -> dict[str, Any]:
        """Reads a tar once, from its beginning to its end."""
        tar = self._tars[part]
        members = _Members()
        broken = ""
        try:
            with tarfile.open(self.root / tar, "r:", errorlevel=2) as archive:
                for member in archive:
                    members.note(archive, member, hashed)
                    beat()
                _check_end(archive)
        except (tarfile.TarError, OSError) as error:
            broken = str(error)
        found = {
            entry["picture"].name if "picture" in entry else key: entry for key, entry in members.samples().items()
        }
        rows = sorted((f"{tar}/{name}", entry) for name, entry in found.items())
        if broken:
            rows.insert(0, (tar, {}))
        nothing = _Member("", _NOWHERE)
        survey: dict[str, Any] = {
            "names": [name for name, _ in rows],
            "spans": [[entry.get(kind, nothing).span for kind in _KINDS] for _, entry in rows],
            "broken": broken,
            "not_taken": members.not_taken,
        }
        return survey | (
            {"sha256": "".join(entry.get("picture", nothing).sha256 for _, entry in rows)} if hashed else {}
        )

    def complete(self, surveys: Iterable[dict[str, Any]]) -> None:
        """Takes the names and offsets of all members.

        Raises:
            ShardError: for shards that hold no picture.
        """
        names: list[str] = []
        tars, spans = [], [self._spans]
        for number, survey in enumerate(surveys):
            if survey["broken"]:
                self._broken[len(names)] = survey["broken"]
            for kind, lost in survey["not_taken"].items():
                self.not_taken[kind] += [f"{self._tars[number]}/{name}" for name in lost]
            names += survey["names"]
            tars.append(np.full(len(survey["names"]), number, np.int32))
            spans.append(np.array(survey["spans"], np.int64).reshape(-1, len(_KINDS), 2))
        self.names, self._tar, self._spans = names, np.concatenate(tars), np.concatenate(spans)
        if not (self._spans[:, 0, 0] >= 0).any():
            raise ShardError(
                f"the {len(self._tars)} tars in {self.root} hold no picture: looked for members that end in "
                f"{', '.join(sorted(SUFFIXES))}"
            )

    def _members(self, tar: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of members of a tar, b"" for _NOWHERE; neighbours are read in one go."""
        try:
            handle = self._handle(tar)
            there = [span for span in spans if span != _NOWHERE]
            start, end = min(at for at, _ in there), max(at + size for at, size in there)
            if end - start <= sum(size for _, size in there) + _MERGE_GAP * len(there):
                content = os.pread(handle, end - start, start)
                found = [content[at - start : at - start + size] if at >= 0 else b"" for at, size in spans]
            else:
                found = [os.pread(handle, size, at) if at >= 0 else b"" for at, size in spans]
        except OSError as error:
            raise DamagedInput("cannot be read", str(error)) from error
        if [len(content) for content in found] != [size for _, size in spans]:
            raise DamagedInput("truncated shard", tar)
        return found

    def _handle(self, tar: str) -> int:
        """A descriptor of the tar; each thread keeps the last one open."""
        if getattr(self._open, "tar", None) != tar:
            if hasattr(self._open, "stream"):
                self._open.stream.close()
            self._open.stream = (self.root / tar).open("rb", buffering=0)
            self._open.tar = tar
        return self._open.stream.fileno()


@dataclass
class _Member:
    """A member of a tar: where its content lies, and the hash of a picture."""

    name: str
    span: tuple[int, int]
    sha256: str = NO_HASH


class _Members:
    """The members of a tar, as they come, and the samples that they make.

    As webdataset has it, a key ends at the first dot of the file's name, and the rest says what the member is. Where
    the rest is nothing that is known (`22.05.png`), the key ends at the last dot: this is the picture of `22.05`, but
    not if it is a further picture (`KEY.mask.png`) of a key that has one, and without a caption or columns of its own.

    Attributes:
        not_taken: names of the members that are nothing of this.
    """

    def __init__(self) -> None:
        self.not_taken = NotTaken()
        self._samples: dict[str, dict[str, _Member]] = {}
        self._dotted: dict[tuple[str, str], dict[str, _Member]] = {}

    def note(self, archive: tarfile.TarFile, info: tarfile.TarInfo, hashed: bool) -> None:
        """Takes the next member."""
        folder, slash, name = info.name.rpartition("/")
        key, _, rest = name.partition(".")
        longest, _, ending = name.rpartition(".")
        kind = _ENDINGS.get(ending.lower())
        if info.isdir():
            return
        if not info.isreg() or not key or kind is None:
            self.not_taken.add(info.name, "hidden" if not key else None if info.isreg() else "no file")
            return
        member = _Member(info.name, (info.offset_data, info.size))
        if rest == ending:
            self._add(self._samples.setdefault(folder + slash + key, {}), kind, member)
        else:
            self._add(self._dotted.setdefault((folder + slash + key, folder + slash + longest), {}), kind, member)
        if hashed and kind == "picture":  # of a tar that ends here the member is known all the same
            stream = archive.extractfile(info)
            assert stream is not None, "a regular member has content"
            member.sha256 = content_hash(stream.read())

    def samples(self) -> dict[str, dict[str, _Member]]:
        """Members by kind for each key; to be called once, at the end."""
        found = dict(self._samples)
        for (key, longest), entry in self._dotted.items():
            known = self._samples.get(key, {})
            if "picture" in entry and ("picture" not in known or len(entry) > 1):
                found[longest] = entry
                continue
            for member in entry.values():
                self.not_taken.add(member.name, member.name.removeprefix(key).lower() if known else None)
        return found

    def _add(self, entry: dict[str, _Member], kind: str, member: _Member) -> None:
        """Adds a member to those of its key; the first of a kind counts, but .txt before .caption."""
        known = entry.setdefault(kind, member)
        if known is member:
            return
        if known.name.lower().endswith(".caption") and member.name.lower().endswith(".txt"):
            entry[kind], member = member, known
        self.not_taken.add(member.name)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises ReadError unless the end mark follows: tarfile takes a broken header for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"neither a member nor the end of the tar at byte {archive.offset}")


def _parse_columns(content: bytes) -> dict[str, Any]:
    """The object in KEY.json; an empty one where there is none."""
    try:
        found = json.loads(content or b"{}")
    except ValueError as error:
        raise DamagedInput("bad json", str(error)) from error
    if not isinstance(found, dict):
        raise DamagedInput("bad json", f"KEY.json holds a {type(found).__name__}, expected an object")
    return found
