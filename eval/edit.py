"""Edit one picture from the command line; the result is written beside the source.

python -m eval.edit --encoder EXPORT --image I --prompt P --target P2 [--strength S] [--mask auto|FILE] [--out FILE]
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.jobs.command import run
from data.pictures.images import DamagedImage, decode
from eval.harness.options import Dtype, folder_or_hub_id
from models.options import AUTOMATIC, MASK_THRESHOLD

logger = logging.getLogger(__name__)

_SHOWN = 256
"""Least side in pixels at which a picture is shown."""
_MARGIN = 16


def edit_picture(
    encoder: str,
    image: Path,
    prompt: str,
    target: str,
    strength: float = 1.0,
    mask: str | None = None,
    threshold: float = MASK_THRESHOLD,
    out: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Path:
    """Invert a picture and edit it by another prompt; writes source, reconstruction and edit side by side.

    Args:
        encoder: folder or hub id of an exported encoder
        image: the picture
        prompt: description of the picture
        target: description of the edited picture
        strength: place between prompt (0) and target (1); below 0 and above 1 extrapolate
        mask: "auto", an automatic mask by its name (prediction, noise, attention), or a picture whose white may change;
            null for none
        threshold: share of its strongest place above which an automatic mask lets a place change
        out: file to write, by default NAME_edited.png beside the picture; the edit alone goes to a file beside it
        dtype: type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: auto, cpu, cuda ...
    """
    folder_or_hub_id(encoder, "--encoder")
    source = _read(image)
    where = mask if mask is None or mask in AUTOMATIC else _read(Path(mask))

    from data.jobs.device import choose_device
    from eval.harness.exports import load_encoder
    from models.pictures import fitted

    pipeline = load_encoder(encoder, choose_device(device), dtype)
    inversion = pipeline.invert(source, prompt, attention=mask == "attention")
    edited = pipeline.edit(inversion, target, strength, where, threshold).images[0]
    reconstruction = pipeline.decode(inversion.reconstructions[-1])[0]
    path = image.with_name(f"{image.stem}_edited.png") if out is None else out
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [("source", source), ("reconstruction", reconstruction), (f"edit, strength {strength:g}", edited)]
    _sheet([(title, fitted(picture, edited.size)[0]) for title, picture in columns], [prompt, prompt, target]).save(
        path
    )
    alone = path.with_name(f"{path.stem}_alone{path.suffix}")
    edited.save(alone)
    logger.info("wrote %s (source, reconstruction, edit) and %s (the edit alone)", path, alone)
    return path


def _read(path: Path) -> Image.Image:
    """An upright RGB picture. ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"there is no picture at {path}")
    try:
        return decode(path.read_bytes())
    except DamagedImage as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


def _sheet(columns: list[tuple[str, Image.Image]], captions: list[str]) -> Image.Image:
    """Pictures in a row, small ones enlarged, each with its title above and its caption below."""
    zoom = -(-_SHOWN // min(columns[0][1].size))
    width, shown = (length * zoom for length in columns[0][1].size)
    title_font, font = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    texts = [_wrapped(caption, font, width) for caption in captions]
    height = _MARGIN + 26 + shown + 8 + 17 * max(len(lines) for lines in texts) + _MARGIN
    sheet = Image.new("RGB", (_MARGIN + len(columns) * (width + _MARGIN), height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, ((title, picture), lines) in enumerate(zip(columns, texts, strict=True)):
        left = _MARGIN + number * (width + _MARGIN)
        draw.text((left, _MARGIN), title, fill="#1d2430", font=title_font)
        sheet.paste(picture.resize((width, shown), Image.Resampling.BICUBIC), (left, _MARGIN + 26))
        for row, line in enumerate(lines):
            draw.text((left, _MARGIN + 26 + shown + 8 + 17 * row), line, fill="#5b6676", font=font)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, words whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.edit", edit_picture, argv)


if __name__ == "__main__":
    main()
