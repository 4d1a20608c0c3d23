"""Pictures of every kind, good and bad, and the three ways in which data.caption takes them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset
from PIL import Image

SIDE = 64


class Nasty(NamedTuple):
    """A file, its caption as bytes (None for none), and the reason for which it is dropped (None if it is good)."""

    content: bytes
    caption: bytes | None
    damage: str | None = None
    policy: str | None = None


def picture(width: int = SIDE, height: int = SIDE, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resizing and JPEG change little; uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [128 + 100 * np.sin(6 * rows / height + 3 * columns / width + p) for p in phase]
    return np.stack(waves, axis=-1).astype(np.uint8)


def saved(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def nasty_pictures() -> dict[str, Nasty]:
    """By name. Names sort as they stand here, so the first of several equal files is the first that is listed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    base = picture(90, 70, seed=3)
    grey = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 15 % 65536).astype(np.uint16)
    clear = np.concatenate([picture(seed=5), np.full((SIDE, SIDE, 1), 90, np.uint8)], axis=-1)
    cmyk, palette = io.BytesIO(), io.BytesIO()
    Image.fromarray(picture(seed=6)).convert("CMYK").save(cmyk, "JPEG")
    frames = [Image.fromarray(picture(seed=seed)).convert("P") for seed in (7, 8)]
    frames[0].save(palette, "GIF", save_all=True, append_images=frames[1:])
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    whole = saved(picture(seed=9), "JPEG")
    bomb = saved(picture(seed=10), "BMP")
    bomb = bomb[:18] + (50_000).to_bytes(4, "little") * 2 + bomb[26:]
    page = b"<html><body>404 Not Found</body></html>"
    return {
        "a_exif.jpg": Nasty(saved(base, "JPEG", exif=exif), b"turned"),
        "b_alpha.png": Nasty(saved(clear), b"clear"),
        "c_cmyk.jpg": Nasty(cmyk.getvalue(), b"ink"),
        "d_grey16.png": Nasty(saved(grey), b"grey"),
        "e_animation.gif": Nasty(palette.getvalue(), b"moving"),
        "f_plain.jpg": Nasty(whole, "blå \n kaffe".encode()),
        "g_again.jpg": Nasty(whole, b"the same file", policy="duplicate"),
        "h_webp.webp": Nasty(saved(base, "WEBP"), b"webp"),
        "i_cut.png": Nasty(saved(noise)[:5000], b"cut", damage="truncated or corrupt"),
        "j_cut.jpg": Nasty(saved(noise, "JPEG")[:2000], b"cut", damage="truncated or corrupt"),
        "k_empty.jpg": Nasty(b"", b"empty", damage="empty file"),
        "l_empty.png": Nasty(b"", b"empty too", damage="empty file"),
        "m_page.jpg": Nasty(page, b"page", damage="not an image"),
        "n_page.png": Nasty(page, b"equal and damaged: not a duplicate", damage="not an image"),
        "o_bomb.bmp": Nasty(bomb, b"bomb", damage="decompression bomb"),
        "p_small.png": Nasty(saved(picture(200, SIDE - 1)), b"small", policy="too small"),
        "q_small.png": Nasty(saved(picture(200, SIDE - 1)), b"small, before it is a duplicate", policy="too small"),
        "r_silent.png": Nasty(saved(picture(seed=11)), None, policy="no caption"),
        "s_blank.png": Nasty(saved(picture(seed=12)), b" \n", policy="empty caption"),
    }


def write_folder(root: Path, pictures: dict[str, Nasty]) -> Path:
    """A folder tree with .txt files; returns what data.caption takes."""
    root.mkdir()
    for name, nasty in pictures.items():
        (root / name).write_bytes(nasty.content)
        if nasty.caption is not None:
            (root / name).with_suffix(".txt").write_bytes(nasty.caption)
    return root


def write_list(root: Path, pictures: dict[str, Nasty]) -> Path:
    """Pictures in a subfolder and a list of them in another order."""
    (root / "files").mkdir(parents=True)
    lines = []
    for name, nasty in pictures.items():
        (root / "files" / name).write_bytes(nasty.content)
        row = {"file_name": f"files/{name}", "licence": "CC0"}
        lines.append(row if nasty.caption is None else row | {"text": nasty.caption.decode()})
    lines.reverse()
    (root / "list.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return root / "list.jsonl"


def write_tars(root: Path, pictures: dict[str, Nasty], per_tar: int = 5) -> Path:
    """img2dataset's layout: KEY.jpg, KEY.json and KEY.txt in 00000.tar, 00001.tar ..."""
    root.mkdir()
    names = list(pictures)
    for start in range(0, len(names), per_tar):
        with webdataset.TarWriter(str(root / f"{start // per_tar:05d}.tar"), encoder=False, mtime=0) as tar:
            for name in reversed(names[start : start + per_tar]):
                key, _, suffix = name.partition(".")
                nasty = pictures[name]
                row = {"key": key, "url": f"https://example.com/{name}", "status": "success"}
                members = {"json": json.dumps(row).encode(), suffix: nasty.content}
                tar.write({"__key__": key} | members | ({} if nasty.caption is None else {"txt": nasty.caption}))
    return root


WRITERS: dict[str, Callable[[Path, dict[str, Nasty]], Path]] = {
    "folder": write_folder,
    "list": write_list,
    "tars": write_tars,
}
"""The three kinds of input."""
