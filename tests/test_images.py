"""Decoding: every kind of picture to upright RGB, every kind of damage to its reason."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.pictures.images import DamagedImage, centre_square, decode, read_picture
from models.upright import upright_rgb
from tests import processes


def picture(width: int = 64, height: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colours; uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [128 + 100 * np.sin(6 * rows / height + 3 * columns / width + p) for p in phase]
    return np.stack(waves, axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    found = decode(content)
    assert found.mode == "RGB"
    return np.asarray(found)


def psnr(a: Image.Image, b: Image.Image) -> float:
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


# --- kinds of pictures ---------------------------------------------------------------------------------------------


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(picture(80, 60)), kind, exif=turned(orientation), **lossless)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(pixels(content), np.asarray(expected))
    assert decode(content).size == expected.size == ((80, 60) if orientation < 5 else (60, 80))


def test_broken_exif_costs_no_picture():
    content = saved(Image.fromarray(picture()), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(7))
    assert pixels(content).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_becomes_8_bit(kind):
    content = saved(Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), kind)
    assert pixels(content)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_transparent_value_of_16_bit_grey_becomes_white():
    content = saved(Image.fromarray(np.array([[0, 257, 32896]], np.uint16)), "PNG", transparency=257)
    assert pixels(content)[0, :, 0].tolist() == [0, 255, 128]


def png(width: int, height: int, bits: int, colours: int, body: bytes) -> bytes:
    """A PNG of raw rows, which Pillow cannot write in all kinds."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colour_becomes_8_bit():
    row = b"\x00" + struct.pack(">6H", 65535, 0, 32896, 257, 514, 771)
    assert pixels(png(2, 1, 16, 2, row))[0].tolist() == [[255, 0, 128], [1, 2, 3]]
    clear = b"\x00" + struct.pack(">8H", 65535, 0, 0, 65535, 65535, 0, 0, 0)
    assert pixels(png(2, 1, 16, 6, clear))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert pixels(saved(Image.fromarray(rgba), kind, **options))[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_colour_and_palette_are_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert pixels(saved(palette, kind, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    colours = palette.convert("RGB")
    assert pixels(saved(colours, "PNG", transparency=(10, 20, 30)))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    grey = saved(Image.fromarray(np.array([[7, 9]], np.uint8)), "PNG", transparency=7)
    assert pixels(grey)[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("TIFF", mode) for mode in ("L", "LA", "1", "P", "CMYK", "YCbCr")), ("JPEG", "L"), ("JPEG", "CMYK")],
)
def test_other_modes_become_rgb(kind, mode):
    original = Image.fromarray(picture()).convert(mode)
    # TIFF is compressed, as Pillow 12 cannot read uncompressed YCbCr of its own.
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"compression": "tiff_lzw"}
    found = pixels(saved(original, kind, **options)).astype(int)
    assert np.abs(found - np.asarray(original.convert("RGB"))).mean() < 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    first, second = (Image.fromarray(picture(seed=seed)).convert("P").convert("RGB") for seed in (1, 2))
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **options)
    assert np.array_equal(pixels(content), np.asarray(first))
    assert read_picture(content).suffix is None


# --- damage --------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    return png(width, height, 8, 2, b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"%PDF-1.7", "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        (bytes(1000), "not an image"),
        (saved(Image.new("RGB", (8, 8)), "PPM"), "not an image"),
        (png_header(60_000, 60_000), "decompression bomb"),
        (png_header(10_000, 10_000), "decompression bomb"),  # Pillow itself only warns here
        (saved(Image.new("F", (8, 8)), "TIFF"), "unsupported pixels"),
        (saved(Image.new("LAB", (8, 8)), "TIFF"), "unsupported pixels"),
    ],
    ids=["empty", "html", "eps", "pdf", "svg", "zeros", "ppm", "large bomb", "small bomb", "floats", "lab"],
)
def test_what_is_no_picture_has_its_reason(content, reason):
    with pytest.raises(DamagedImage) as caught:
        decode(content)
    assert caught.value.reason == reason
    assert " at 0x" not in caught.value.detail, "an address would differ from run to run"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_is_damaged(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind)
    with pytest.raises(DamagedImage) as caught:
        decode(content[: int(share * len(content))])
    assert caught.value.reason == "truncated or corrupt"
    assert " at 0x" not in caught.value.detail


def test_flipped_bits_give_a_reason_and_no_other_error():
    generator = np.random.default_rng(0)
    whole = [saved(Image.fromarray(picture()), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]
    for content in whole:
        for _ in range(100):
            broken = bytearray(content)
            for place in generator.integers(0, len(content), 4):
                broken[place] ^= int(generator.integers(1, 256))
            try:
                assert decode(bytes(broken)).mode == "RGB"
            except DamagedImage as error:
                assert error.reason


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_avif_is_damaged(share):
    content = saved(Image.fromarray(picture()), "AVIF")
    with pytest.raises(DamagedImage) as caught:
        decode(content[: int(share * len(content))])
    assert caught.value.reason == "truncated or corrupt"


# --- formats by plugins --------------------------------------------------------------------------------------------

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)
JXL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)
AVIF = b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif" + bytes(100)


@pytest.mark.parametrize(
    ("content", "missing", "reason"),
    [
        (HEIC, "pillow_heif", "needs pip install pillow-heif"),
        (JXL, "pillow_jxl", "needs pip install pillow-jxl-plugin"),
        (JXL_BOXES, "pillow_jxl", "needs pip install pillow-jxl-plugin"),
        (AVIF, "PIL.AvifImagePlugin", "needs pip install 'Pillow>=11.3'"),
    ],
)
def test_what_is_missing_for_a_format_is_its_reason(content, missing, reason):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from data.pictures.images import decode, DamagedImage\n"
        f"try: decode({content!r})\n"
        "except DamagedImage as error: print(error.reason)\n"
    )
    assert processes.run("-c", code, fresh=True).stdout.strip() == reason


def registered(plugin: str, kind: str) -> None:
    pytest.importorskip(plugin, reason=f"{plugin} (the extra `pictures`) is not installed")
    with pytest.raises(DamagedImage):  # which registers the plugins that are there
        decode(b"no picture")
    assert kind in Image.OPEN


@pytest.mark.parametrize(("plugin", "kind"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_formats_by_plugins_are_read(plugin, kind, mode):
    registered(plugin, kind)
    original = Image.fromarray(picture(80, 60)).convert(mode)
    if mode == "RGBA":
        original.putalpha(Image.new("L", original.size, 128))
    content = saved(original, kind, quality=95)
    expected = np.asarray(upright_rgb(original)).astype(int)
    assert np.abs(pixels(content) - expected).mean() < 4, "colours are stored at half the size"
    assert read_picture(content).suffix is None
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(DamagedImage, match="truncated or corrupt"):
            decode(content[: int(share * len(content))])


def test_a_heic_is_turned_once():
    """libheif has turned it; what EXIF still says is of the camera."""
    registered("pillow_heif", "HEIF")
    content = saved(Image.fromarray(picture(80, 60)), "HEIF", exif=turned(6), quality=95)
    assert np.abs(pixels(content).astype(int) - np.asarray(Image.open(io.BytesIO(content)))).max() == 0


def test_a_jxl_follows_its_own_orientation_and_not_that_of_exif(tmp_path):
    """ISO/IEC 18181-2; but a JPEG that it holds without loss is that JPEG."""
    registered("pillow_jxl", "JXL")
    exif = turned(6).tobytes()
    content = saved(Image.fromarray(picture(80, 60)), "JXL", exif=exif, lossless=True)
    assert np.array_equal(pixels(content), picture(80, 60))
    (tmp_path / "a.jpg").write_bytes(saved(Image.fromarray(picture(80, 60)), "JPEG", exif=turned(6)))
    with Image.open(tmp_path / "a.jpg") as photo:
        held = saved(photo, "JXL", lossless_jpeg=True)
    assert np.array_equal(pixels(held), pixels((tmp_path / "a.jpg").read_bytes()))


# --- the square ----------------------------------------------------------------------------------------------------


def test_the_square_is_the_centre():
    wide = picture(201, 100)
    square, crop = centre_square(Image.fromarray(wide), 64)
    assert square.size == (64, 64) and crop == (50, 0, 100, 100)
    expected = Image.fromarray(wide[:, 50:150]).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(square).astype(int) - np.asarray(expected)).mean() < 0.1  # only the border sees beyond


def test_enlarging_is_possible():
    square, crop = centre_square(Image.fromarray(picture(30, 20)), 64)
    assert square.size == (64, 64) and crop == (5, 0, 20, 20)


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None)])
def test_plain_files_are_as_good_as_their_pictures(kind, suffix):
    assert read_picture(saved(Image.fromarray(picture()), kind)).suffix == suffix


def test_files_that_need_more_than_decoding_are_not():
    plain = Image.fromarray(picture())
    assert read_picture(saved(plain, "JPEG", exif=turned(6))).suffix is None
    assert read_picture(saved(plain.convert("L"), "JPEG")).suffix is None
    assert read_picture(saved(plain.convert("RGBA"), "PNG")).suffix is None
    assert read_picture(saved(plain, "PNG", transparency=(1, 2, 3))).suffix is None
