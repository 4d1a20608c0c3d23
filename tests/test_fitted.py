"""One way from a picture to pixels: what training stores, evaluation reads and the exported pipeline sees is equal."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.pictures.images import encode
from data.shards.dataset import ShardDataset
from data.shards.shard import read_samples, read_sidecars
from eval.harness.captioned import each_captioned_image
from models.masks import drawn_mask, read_mask
from models.pictures import to_uint8
from models.shapes import Cutout
from models.turboedit_pipeline import TurboEditPipeline
from models.upright import centre_crop, fitted, upright_rgb
from scripts.bench.photographs import photograph
from tests import processes
from tests.nasty_pictures import SIDE, picture
from tests.tiny_editing import tiny_pipeline

SHAPE = (95, 70)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(seed: int = 0) -> Image.Image:
    return Image.fromarray(picture(*SHAPE, seed=seed))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_alpha(mode: str) -> Image.Image:
    clear = plain().convert(mode)
    clear.putalpha(Image.fromarray((np.arange(SHAPE[0] * SHAPE[1]) % 256).astype(np.uint8).reshape(SHAPE[::-1])))
    return clear


def png(width: int, height: int, bits: int, colours: int, rows: bytes, interlaced: bool = False) -> bytes:
    """A PNG of raw rows, which Pillow cannot write in all kinds."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def raw_rows(levels: np.ndarray) -> bytes:
    return b"".join(b"\x00" + row.tobytes() for row in levels)


def interlaced_png() -> bytes:
    """The seven passes of Adam7 (PNG specification, 8.2): first column and row, steps."""
    levels = np.asarray(plain())
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return png(*SHAPE, 8, 2, b"".join(raw_rows(levels[y::dy, x::dx]) for x, y, dx, dy in passes), interlaced=True)


def deep_png() -> bytes:
    levels = np.random.default_rng(0).integers(0, 65536, (*SHAPE[::-1], 3)).astype(">u2")
    return png(*SHAPE, 16, 2, raw_rows(levels))


def deep_grey() -> Image.Image:
    return Image.fromarray((np.arange(SHAPE[0] * SHAPE[1]) * 9 % 65536).astype(np.uint16).reshape(SHAPE[::-1]))


def palette() -> Image.Image:
    return plain().convert("P", palette=Image.Palette.ADAPTIVE)


def several(kind: str, **options: Any) -> bytes:
    return saved(plain(1), kind, save_all=True, append_images=[plain(2)], **options)


def kinds() -> dict[str, Callable[[], bytes]]:
    """Every kind of file that can hold a picture, by a name with its ending."""
    found: dict[str, Callable[[], bytes]] = {
        "rgba.png": lambda: saved(with_alpha("RGB"), "PNG"),
        "la.png": lambda: saved(with_alpha("L"), "PNG"),
        "rgba.webp": lambda: saved(with_alpha("RGB"), "WEBP", lossless=True),
        "palette.png": lambda: saved(palette(), "PNG"),
        "clear_entry.png": lambda: saved(palette(), "PNG", transparency=3),
        "clear_entries.png": lambda: saved(palette(), "PNG", transparency=bytes(range(0, 256, 3))),
        "clear_colour.png": lambda: saved(plain(), "PNG", transparency=plain().getpixel((9, 9))),
        "clear_grey.png": lambda: saved(plain().convert("L"), "PNG", transparency=99),
        "clear_deep_grey.png": lambda: saved(deep_grey(), "PNG", transparency=900),
        "deep_grey.png": lambda: saved(deep_grey(), "PNG"),
        "deep_grey.tif": lambda: saved(deep_grey(), "TIFF"),
        "deep_colour.png": deep_png,
        "interlaced.png": interlaced_png,
        "bit.png": lambda: saved(plain().convert("1"), "PNG"),
        "grey.jpg": lambda: saved(plain().convert("L"), "JPEG"),
        "cmyk.jpg": lambda: saved(plain().convert("CMYK"), "JPEG"),
        "cmyk.tif": lambda: saved(plain().convert("CMYK"), "TIFF"),
        # Compressed, as Pillow 12 cannot read uncompressed ones of its own.
        "ycbcr.tif": lambda: saved(plain().convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        "la.tif": lambda: saved(with_alpha("L"), "TIFF"),
        "moving.gif": lambda: several("GIF"),
        "moving_clear.gif": lambda: several("GIF", transparency=3, disposal=2),
        "moving.webp": lambda: several("WEBP", lossless=True),
        "moving.png": lambda: several("PNG"),
        "pages.tif": lambda: several("TIFF"),
        "two.jpg": lambda: several("MPO"),
        "plain.bmp": lambda: saved(plain(), "BMP"),
        "plain.avif": lambda: saved(plain(), "AVIF"),
        "rgba.avif": lambda: saved(with_alpha("RGB"), "AVIF"),
        "moving.avif": lambda: several("AVIF"),
        "turned.avif": lambda: saved(plain(), "AVIF", exif=turned(6)),
        "broken_exif.jpg": lambda: saved(plain(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(7)),
        "large.jpg": lambda: photograph(1, (1536, 1024)),
        "wide.jpg": lambda: photograph(2, (900, 100)),
        "square.jpg": lambda: photograph(3, (SIDE, SIDE)),
        "square.png": lambda: saved(Image.fromarray(picture(SIDE, SIDE)), "PNG"),
        "turned_square.png": lambda: saved(Image.fromarray(picture(SIDE, SIDE)), "PNG", exif=turned(5)),
    }
    for orientation in range(1, 9):
        for kind, ending in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
            found[f"turned_{orientation}.{ending}"] = lambda kind=kind, orientation=orientation: saved(
                plain(), kind, exif=turned(orientation)
            )
    return found


@pytest.fixture(scope="module")
def pipeline(tiny_sd_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_sd_backbone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds") / "in"
    root.mkdir()
    for name, make in kinds().items():
        (root / name).write_bytes(make())
    rows = "".join(f"{name},a picture\n" for name in kinds())
    (root / "metadata.csv").write_text("file_name,text\n" + rows)
    return root


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, tuple[str, bytes]]:
    """What data.caption makes of each: the ending and the bytes in the shard, by the file's name."""
    out = folder.parent / "out"
    manifest = caption_folder(folder, out, CaptionConfig(resolution=SIDE, drop_duplicates=False))
    assert manifest["drops"] == {"damage": {}, "policy": {}} and manifest["count"] == len(kinds())
    dataset = ShardDataset(out, ("info",))
    infos = [dataset[number]["info"] for number in range(len(dataset))]
    names = {info["key"]: info["source"] for info in infos}
    found = {}
    for sidecar in read_sidecars(out).values():
        for sample in read_samples(out, sidecar):
            (suffix,) = sample.members.keys() - {"json"}
            found[names[sample.key]] = (suffix, sample.members[suffix])
    return found


@pytest.mark.parametrize("name", kinds())
def test_training_stores_what_the_pipeline_sees(folder: Path, stored: Any, pipeline: TurboEditPipeline, name: str):
    """A picture that was not a square of the size is stored as JPEG: of equal pixels, so of equal bytes."""
    seen = pipeline.preprocess(folder / name, SIDE, SIDE)
    assert seen.shape == (1, 3, SIDE, SIDE)
    pixels = Image.fromarray(to_uint8(seen)[0].permute(1, 2, 0).numpy())
    suffix, content = stored[name]
    if Image.open(folder / name).size == (SIDE, SIDE):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(pixels))
    else:
        assert (suffix, content) == encode(pixels, lossless=False)


@pytest.mark.parametrize("name", kinds())
def test_files_and_opened_pictures_are_seen_alike(folder: Path, pipeline: TurboEditPipeline, name: str):
    seen = pipeline.preprocess(str(folder / name), SIDE, SIDE)
    assert torch.equal(pipeline.preprocess(Image.open(folder / name), SIDE, SIDE), seen)
    loaded = Image.open(folder / name)
    loaded.load()
    assert torch.equal(pipeline.preprocess([loaded], SIDE, SIDE), seen)
    assert torch.equal(pipeline.preprocess(upright_rgb(loaded), SIDE, SIDE), seen)


def test_evaluation_reads_what_the_pipeline_sees(folder: Path, pipeline: TurboEditPipeline):
    images = {image.key: image.image for image in each_captioned_image(folder, SIDE)}
    assert set(images) == set(kinds())
    for name, image in images.items():
        assert torch.equal(pipeline.preprocess(folder / name, SIDE, SIDE)[0], image), name


def test_a_mask_is_cropped_as_its_picture(pipeline: TurboEditPipeline):
    marked = Image.new("RGB", (300, 200))
    marked.paste((255, 255, 255), (60, 0, 140, 200))
    seen = pipeline.preprocess(marked, SIDE, SIDE)
    cutout = Cutout((200, 300), fitted(marked, (SIDE, SIDE))[1], (SIDE, SIDE))
    mask = drawn_mask(read_mask(marked.convert("L")), [cutout])
    assert mask.shape == (1, 1, SIDE, SIDE)
    torch.testing.assert_close(mask, (seen[:, :1] + 1) / 2, rtol=0, atol=1e-6)


def test_pictures_in_memory_with_a_clear_palette_are_laid_on_white():
    clear = with_alpha("L").convert("PA")
    over_white = Image.alpha_composite(Image.new("RGBA", SHAPE, "white"), clear.convert("RGBA")).convert("RGB")
    assert np.array_equal(np.asarray(fitted(clear, SHAPE)[0]), np.asarray(over_white))


# --- the function itself -------------------------------------------------------------------------------------------


def lanczos(levels: np.ndarray, start: float, length: float, out: int) -> np.ndarray:
    """Resize the first axis: a window of three lobes, widened by the scale where it is above 1, weights of sum 1."""
    scale = length / out
    reach = 3 * max(scale, 1.0)
    rows = np.arange(len(levels))
    found = []
    for number in range(out):
        centre = start + (number + 0.5) * scale
        first, last = int(max(centre - reach + 0.5, 0)), int(min(centre + reach + 0.5, len(levels)))
        x = (rows[first:last] + 0.5 - centre) / max(scale, 1.0)
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        found.append(np.tensordot(weights / weights.sum(), levels[first:last], 1))
    return np.clip(np.stack(found), 0, 255)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96), (128, 32), (160, 192)])
def test_pixels_are_lanczos_of_the_crop(size: tuple[int, int]):
    levels = np.random.default_rng(0).integers(80, 176, (120, 167, 3), np.uint8)  # nothing is clipped between the axes
    found, (left, top, width, height) = fitted(Image.fromarray(levels), size)
    assert found.size == size
    columns = lanczos(levels.astype(float).swapaxes(0, 1), left, width, size[0]).swapaxes(0, 1)
    expected = lanczos(columns, top, height, size[1])
    assert np.abs(np.asarray(found) - expected).max() <= 1.5, "rounded twice"


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (704, 384), (384, 704), (2, 1000)])
def test_the_crop_is_the_largest_at_the_centre_with_the_aspect(size: tuple[int, int]):
    draw = np.random.default_rng(1)
    for width, height in draw.integers(1, 900, (200, 2)).tolist():
        left, top, wide, high = centre_crop((width, height), size)
        assert wide == width or high == height
        assert 1 <= wide <= width and 1 <= high <= height
        assert abs(2 * left + wide - width) <= 1 and abs(2 * top + high - height) <= 1
        exact = min(width, height * size[0] / size[1]), min(height, width * size[1] / size[0])
        assert abs(wide - max(1, exact[0])) <= 0.5 and abs(high - max(1, exact[1])) <= 0.5


def test_the_crop_is_in_pixels_of_the_upright_original():
    content = saved(Image.fromarray(picture(200, 100)), "JPEG", exif=turned(6))
    found, crop = fitted(Image.open(io.BytesIO(content)), (64, 32))
    assert found.size == (64, 32) and crop == (0, 75, 100, 50)


def test_a_picture_that_fits_is_the_same_object():
    whole = plain()
    assert fitted(whole, SHAPE)[0] is whole and upright_rgb(whole) is whole
    again, _ = fitted(Image.open(io.BytesIO(saved(whole, "PNG", exif=turned(6)))), SHAPE[::-1])
    assert fitted(again, SHAPE[::-1])[0] is again, "a picture is turned once"


def test_reading_pictures_needs_pillow_and_numpy_alone(tmp_path: Path):
    """Files of models/ that an export carries run where the plugins are not installed."""
    (tmp_path / "a.avif").write_bytes(saved(plain(), "AVIF"))
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'pillow_heif', 'pillow_jxl', 'pyarrow'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from models.upright import fitted, open_picture\n"
        f"print(fitted(open_picture(Path({str(tmp_path / 'a.avif')!r}).read_bytes()), (64, 32)))\n"
    )
    said = processes.run("-c", code, fresh=True).stdout
    assert "(0, 11, 95, 48)" in said
