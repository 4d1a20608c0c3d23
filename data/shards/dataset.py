"""Samples of a folder of shards by number: reads each by its offset in the tar, without parsing the tar."""

import io
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch.utils.data import Dataset, get_worker_info

from data.jobs.errors import ShardError
from data.pictures import images
from data.pictures.buckets import Size
from data.shards.order import caption_number
from data.shards.sample import IMAGES, captions_of, parse_info
from data.shards.shard import layout_at, num_several, read_manifest, read_sidecar
from models.pictures import from_picture

ARRAYS = {
    "latent": "latent.npy",
    "source": "source.npy",
    "prompt": "prompt.npy",
    "pooled": "pooled.npy",
    "mask": "mask.npy",
    "clip": "clip.npy",
    "pivots": "pivots.npy",
}
"""Fields that are arrays, with the suffix of their member."""

FIELDS = ("image", *ARRAYS, "caption", "info")
"""All fields that can be asked for; `key` always comes with them."""

ON_HOST = ("mask",)
"""Fields that stay on the host, which reads them without waiting for a device."""

OF_A_CAPTION = ("prompt", "pooled", "mask", "pivots")
"""Fields that were made with a caption, the first of a sample's."""

_OPEN_SHARDS = 64
# Members this close are read in one go: a tar header and its padding are at most 1,023 bytes.
_MERGE_GAP = 2048


_Turn = tuple[int, int]
"""Seed and epoch."""


class UnreadableSample(Exception):
    """A sample that cannot be read; its text is the reason, in fixed words that can be counted."""


class ShardDataset(Dataset):
    """Map-style reader of a finished folder of shards.

    Args:
        folder: OUT folder of data.caption, data.edit_pairs or data.encode.
        fields: what `ds[i]` holds beside "key": "image" float32 [3, H, W] in [-1, 1]; "latent" float32 [C, h, w];
            "source" float32 [C, h, w], the latent of a pair's source picture; "prompt" float32 [L, D]; "pooled"
            float32 [P]; "mask" float32 [L], 1 where a token of the prompt is there; "clip", image tokens, float32
            [N, D]; "pivots" float32 [n + 1, C, h, w], from the noisiest to the latent; "caption" str, of a pair the
            instruction, of several captions the first; "info" all of KEY.json.

    Attributes:
        sizes: number of samples of each shard.
        num_several: number of samples with several captions.
        latent_fingerprint: names the VAE and the preprocessing of the latents; None without latents.
        vae_fingerprint: of the VAE of the latents (models/fingerprints.py); None without them.
        text_fingerprint: of the text encoders of the prompts and pivots; None without both.
        unet_fingerprint: of the UNet of the pivots; None without them.
        pivot_steps: the steps of the pivots in words; None without them.
        clip_fingerprint: of the CLIP of the image tokens; None without them.
        resolution: side in pixels of the square images, or of the square with the area of all.
        buckets: width and height of the images, by number.
        bucket_of: number of each sample's bucket, uint8 [N].
        available: the fields that these shards can give.

    Raises:
        ValueError: for a folder that is missing, unfinished, empty or of another schema version, for fields that
            are unknown or not in the shards, and for shards that do not fit together.
    """

    def __init__(self, folder: str | Path, fields: Sequence[str] = ("latent", "caption")) -> None:
        self.folder = Path(folder)
        self.fields = tuple(fields)
        sidecars = _read_index(self.folder)
        properties = _agreed(self.folder, [s["properties"] for s in sidecars], "properties")
        layouts = _layouts(self.folder, [s["arrays"] for s in sidecars])
        self.sizes: list[int] = [s["count"] for s in sidecars]
        self.num_several: int = sum(s["several"] for s in sidecars)
        self.latent_fingerprint: str | None = properties.get("latent_fingerprint")
        self.vae_fingerprint: str | None = properties.get("vae_fingerprint")
        self.text_fingerprint: str | None = properties.get("text_fingerprint")
        self.unet_fingerprint: str | None = properties.get("unet_fingerprint")
        self.pivot_steps: str | None = properties.get("pivot_steps")
        self.clip_fingerprint: str | None = properties.get("clip_fingerprint")
        self.resolution: int = properties["resolution"]
        self._tars = [str(self.folder / f"{s['unit']}.tar") for s in sidecars]
        self._firsts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._keys = np.concatenate([s["keys"] for s in sidecars])
        suffixes = sorted({suffix for s in sidecars for suffix in s["members"]})
        self.available = tuple(name for name in FIELDS if _held(name, suffixes))
        self._members = _member_table(sidecars, self.fields, suffixes, self.folder)
        self.buckets, self.bucket_of = _buckets(sidecars, self.resolution)
        self._shapes = [_shapes(self.fields, layouts, size) for size in self.buckets]
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def index_bytes(self) -> int:
        """Memory that the keys and the places of all samples take."""
        return sum(array.nbytes for array in (self._keys, self._firsts, *self._members.values()))

    def key(self, index: int) -> str:
        """The key of a sample, known without reading it."""
        return self._keys[index].decode("ascii")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample as tensors, strings and dicts.

        Raises:
            UnreadableSample: with the reason.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        sample = self._read(index)
        return sample | {name: sample[name].float() for name in self._shapes[self.bucket_of[index]]}

    @property
    def takes_turns(self) -> bool:
        """Whether batches take another of several captions in each epoch; the first where fields were made with it."""
        return not set(OF_A_CAPTION) & set(self.fields)

    def read_batch(self, indices: Sequence[int], seed: int = 0, epochs: Sequence[int] | None = None) -> dict[str, Any]:
        """Samples of one bucket together: tensors stacked to [b, ...], strings and dicts as lists.

        Of several captions a sample has the one whose turn it is in its epoch (`caption_number`); without `epochs`, and
        where not `takes_turns`, the first.

        An unreadable sample is replaced by the next readable one of its bucket and shard (then of the following
        shards); "substituted" lists (key, reason) of the replaced.
        """
        batch: dict[str, Any] = {name: [] for name in ("key", *self.fields)}
        shapes = self._shapes[self.bucket_of[indices[0]]]
        batch |= {name: _empty(len(indices), *shape) for name, shape in shapes.items()}
        batch["substituted"] = []
        for row, index in enumerate(indices):
            turn = None if epochs is None or not self.takes_turns else (seed, epochs[row])
            sample, reason = self._read_or_substitute(index, turn)
            for name, value in sample.items():
                if name in shapes:
                    batch[name][row] = value  # to float32 and into its place at once
                else:
                    batch[name].append(value)
            if reason is not None:
                batch["substituted"].append((self.key(index), reason))
        return batch

    def _read_or_substitute(self, index: int, turn: _Turn | None) -> tuple[dict[str, Any], str | None]:
        """The sample, or its substitute with the reason why it was needed."""
        try:
            return self._read(index, turn), None
        except UnreadableSample as error:
            reason = str(error)
        for other in self._substitutes(index):
            try:
                return self._read(other, turn), reason
            except UnreadableSample:
                continue  # the reason of the sample that was asked for is the one that counts
        raise ValueError(f"no sample of {self.folder} can be read; the first that was asked for: {reason}")

    def _substitutes(self, index: int) -> Iterable[int]:
        """All others of its bucket: those after it in its shard, those before it, then the following shards."""
        shard = self._shard_of(index)
        first, end = int(self._firsts[shard]), int(self._firsts[shard + 1])
        others = chain(range(index + 1, end), range(first, index), range(end, len(self)), range(first))
        return (other for other in others if self.bucket_of[other] == self.bucket_of[index])

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _read(self, index: int, turn: _Turn | None = None) -> dict[str, Any]:
        """The fields of a sample, arrays as tensors of the type in which they are stored.

        Args:
            turn: decides which of several captions it has; None takes the first.
        """
        contents = self._read_members(index)
        key = self.key(index)
        sample: dict[str, Any] = {"key": key}
        info = _parse_json(contents["json"], key) if "json" in contents else {}
        for name in self.fields:
            if name == "info":
                sample[name] = info
            elif name == "caption":
                sample[name] = _caption(info, turn)
            else:
                decode = _parse_image if name == "image" else parse_array
                sample[name] = decode(contents[name], self._shapes[self.bucket_of[index]][name])
        return sample

    def _read_members(self, index: int) -> dict[str, memoryview]:
        """The bytes of the members that the fields need, neighbours in one read."""
        handle = self._handle(self._shard_of(index))
        spans = sorted((int(table[index, 0]), int(table[index, 1]), name) for name, table in self._members.items())
        if spans and spans[0][0] < 0:
            raise UnreadableSample(f"missing member: {spans[0][2]}")
        contents: dict[str, memoryview] = {}
        while spans:
            group = [spans.pop(0)]
            while spans and spans[0][0] - sum(group[-1][:2]) <= _MERGE_GAP:
                group.append(spans.pop(0))
            start, end = group[0][0], sum(group[-1][:2])
            content = _pread(handle, end - start, start)
            contents |= {name: content[at - start : at - start + size] for at, size, name in group}
        return contents

    def _handle(self, shard: int) -> int:
        """A file descriptor of the shard's tar; the least recently opened are closed."""
        if shard not in self._handles:
            try:
                self._handles[shard] = os.open(self._tars[shard], os.O_RDONLY)
            except OSError as error:
                raise UnreadableSample(f"shard cannot be opened: {error.strerror}") from error
            if len(self._handles) > _OPEN_SHARDS:
                os.close(self._handles.popitem(last=False)[1])
        return self._handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        # File descriptors belong to one process; a spawned worker opens its own.
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)


def largest_size(folder: str | Path) -> Size | None:
    """Width and height of the largest pictures that finished shards may hold; None without such a folder.

    Of pictures that are all alike it is None too.
    """
    try:
        buckets = read_manifest(folder)["properties"].get("buckets", [])
    except ShardError:
        return None
    return max(((width, height) for width, height in buckets), key=math.prod, default=None)


def _read_index(folder: Path) -> list[dict[str, Any]]:
    """The sidecars of all units that hold samples, one after another and as arrays.

    As plain JSON the sidecars of a million samples would take up gigabytes.
    """
    index = []
    for name in sorted(unit["unit"] for unit in read_manifest(folder)["units"]):
        sidecar = read_sidecar(folder / f"{name}.json")
        if sidecar["count"]:
            found = {field: sidecar[field] for field in ("unit", "count", "properties", "arrays")}
            found["several"] = num_several(sidecar["checks"])
            found["sizes"] = np.array(sidecar.get("sizes", []), np.int32).reshape(-1, 2)
            found["keys"] = np.array([key.encode("ascii") for key in sidecar["keys"]])
            found["members"] = {suffix: np.array(spans, np.int64) for suffix, spans in sidecar["members"].items()}
            index.append(found)
    return index


def _agreed(folder: Path, values: list[dict[str, Any]], what: str) -> dict[str, Any]:
    for value in values:
        if value != values[0]:
            raise ValueError(
                f"the shards in {folder} differ in {what}: {values[0]} and {value}; make them again together"
            )
    if not values:
        raise ValueError(f"all shards in {folder} are empty: every input was dropped")
    return values[0]


def _layouts(folder: Path, layouts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the shards say of their arrays together; each has met some of the sizes alone."""
    if not any("shapes" in held for layout in layouts for held in layout.values()):
        return _agreed(folder, layouts, "arrays")
    joined: dict[str, Any] = {}
    for layout in layouts:
        for suffix, held in layout.items():
            known = joined.setdefault(suffix, {"dtype": held["dtype"], "shapes": {}})
            shapes = {size: known["shapes"].setdefault(size, shape) for size, shape in held["shapes"].items()}
            _agreed(folder, [{**known, "shapes": shapes}, held], suffix)
    return joined


def _buckets(sidecars: list[dict[str, Any]], resolution: int) -> tuple[tuple[Size, ...], np.ndarray]:
    """The sizes of pictures that there are, and the number of each sample's."""
    sizes = np.concatenate([sidecar["sizes"] for sidecar in sidecars])
    if not len(sizes):
        return ((resolution, resolution),), np.zeros(sum(sidecar["count"] for sidecar in sidecars), np.uint8)
    buckets, numbers = np.unique(sizes, axis=0, return_inverse=True)
    return tuple((int(width), int(height)) for width, height in buckets), numbers.astype(np.uint8)


def _shapes(fields: Sequence[str], layouts: Mapping[str, Any], size: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors among the fields, of samples whose pictures have a size."""
    found = {name: layout_at(layouts[ARRAYS[name]], size) for name in fields if name in ARRAYS}
    shapes = {name: tuple(layout["shape"]) for name, layout in found.items() if layout is not None}
    if "image" in fields:
        shapes["image"] = (3, size[1], size[0])
    return shapes


def _member_table(
    sidecars: list[dict[str, Any]], fields: tuple[str, ...], suffixes: list[str], folder: Path
) -> dict[str, np.ndarray]:
    """Offset and size by field (caption and info share "json"), int64 [N, 2]; offset -1 where a sample has none."""
    table = {}
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r}, expected some of {', '.join(FIELDS)}")
        held = _held(name, suffixes)
        if not held:
            raise ValueError(
                f"the shards in {folder} hold no {name!r} (they hold {', '.join(suffixes)}): {_cure(name)}"
            )
        columns = [np.concatenate([_column(s, suffix) for s in sidecars]) for suffix in held]
        table["json" if name in ("caption", "info") else name] = np.maximum.reduce(columns)
    return table


def _held(name: str, suffixes: Sequence[str]) -> list[str]:
    """The suffixes that hold a field, among those that there are."""
    wanted = {"image": IMAGES, "caption": ("json",), "info": ("json",)}.get(name) or (ARRAYS[name],)
    return [suffix for suffix in wanted if suffix in suffixes]


def _column(sidecar: dict[str, Any], suffix: str) -> np.ndarray:
    return sidecar["members"].get(suffix, np.array([[-1, 0]] * sidecar["count"]))


def _cure(name: str) -> str:
    cures = {
        "image": "run data.encode with --keep-images true, or give the folder of data.caption",
        "latent": "run data.encode first",
        "source": "run data.encode on shards of data.edit_pairs",
        "prompt": "run data.encode with --prompts true",
        "pooled": "run data.encode with --prompts true and a backbone that has pooled embeddings",
        "mask": "run data.encode with --prompts true and a backbone whose prompts have a mask",
        "clip": "run data.encode with --clip and a CLIP",
        "pivots": "run data.encode with --pivots true",
    }
    return cures.get(name, "make the shards again")


def _pread(handle: int, size: int, offset: int) -> memoryview:
    try:
        content = bytearray(os.pread(handle, size, offset))  # torch takes memory that can be written, as bytes cannot
    except OSError as error:
        raise UnreadableSample(f"read error: {error.strerror}") from error
    if len(content) < size:
        raise UnreadableSample("truncated shard")
    return memoryview(content)


def _empty(*shape: int) -> torch.Tensor:
    """Room for a batch, float32; in a worker in shared memory, else the way to the training process copies it all."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # what torch's own collating function does
    return torch.empty(0).set_(storage).view(shape)


def _parse_json(content: memoryview, key: str) -> dict[str, Any]:
    try:
        info = parse_info(bytes(content))
    except json.JSONDecodeError as error:
        raise UnreadableSample("bad json") from error
    except ValueError as error:  # includes text that is not UTF-8
        raise UnreadableSample("wrong schema" if "schema" in str(error) else "bad json") from error
    if info.get("key") != key:
        raise UnreadableSample("another sample's json")
    try:
        captions_of(info)
    except ValueError as error:
        raise UnreadableSample("bad json") from error
    return info


def _caption(info: Mapping[str, Any], turn: _Turn | None) -> str:
    """The caption whose turn it is; the first without a turn."""
    captions = captions_of(info)
    if turn is None or len(captions) == 1:
        return captions[0]
    return captions[caption_number(*turn, info["key"], len(captions))]


def parse_array(content: memoryview, shape: tuple[int, ...]) -> torch.Tensor:
    """An .npy member as a finite tensor of the expected shape, in the type in which it is stored.

    Raises:
        UnreadableSample: with the reason.
    """
    try:
        length = 10 + int.from_bytes(content[8:10], "little")
        found_shape, dtype = _npy_header(bytes(content[:length]))
        # Later torch's own conversion to float32 is twenty times as fast as numpy's.
        array = torch.from_numpy(np.frombuffer(content, dtype, offset=length).reshape(found_shape))
    except (ValueError, SyntaxError, TokenError) as error:  # all of them from numpy's way of reading a header
        raise UnreadableSample("bad npy") from error
    if array.shape != shape:
        raise UnreadableSample(f"shape {tuple(array.shape)} instead of {shape}")
    # The sum is not finite if an element is not, and far cheaper than testing each.
    if not array.sum(dtype=torch.float32).isfinite() and not array.float().isfinite().all():
        raise UnreadableSample("not finite")
    return array


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from the header's bytes; the same few headers come again and again."""
    stream = io.BytesIO(header)
    if npy_format.read_magic(stream) != (1, 0):
        raise ValueError("only version 1.0 of the npy format is written here")
    shape, fortran_order, dtype = npy_format.read_array_header_1_0(stream)
    if fortran_order or dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"expected floats in C order, found {dtype} and fortran_order={fortran_order}")
    return shape, dtype


def _parse_image(content: memoryview, shape: tuple[int, ...]) -> torch.Tensor:
    """A picture as float32 [3, H, W] in [-1, 1]."""
    try:
        image = from_picture(images.decode(bytes(content)))
    except images.DamagedImage as error:
        raise UnreadableSample(f"bad image: {error.reason}") from error
    if tuple(image.shape) != shape:
        raise UnreadableSample(f"shape {tuple(image.shape)} instead of {shape}")
    return image
