"""Edit photographs by words: from a photograph to its edit in one command.

    python -m eval.edit --encoder EXPORT --image photo.jpg --prompt "a cat" --target "a dog" --mask auto
    python -m eval.edit --encoder EXPORT --image *.jpg --captioner MODEL|URL --instruction "make the cat a dog"
    python -m eval.edit --editor null_text --backbone PIPELINE --image photo.jpg --prompt "a cat" --target "a dog"

Leaves beside the photograph, or in --out: NAME_edited.png, a sheet of source, reconstruction, mask and edits;
NAME_edited_1.png and so on, each edit at the photograph's size; NAME_edited.json, all texts and figures. What made an
edit is in NAME_edited_1.json: --config with that file makes it again. Files that are there already stay: what would
take their names is NAME_edited-2.png, NAME_edited-2_1.png and so on.
"""

from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import run
from data.pictures.images import SUFFIXES
from eval.harness.options import folder_or_hub_id
from eval.photo_edits.options import PhotoEditOptions
from eval.photo_edits.photographs import open_photograph
from models.options import AUTOMATIC


def edit_pictures(config: PhotoEditOptions) -> list[Path]:
    """Edit photographs of any shape by words; returns the files of the edits alone."""
    _check_names(config)

    from eval.photo_edits.loading import load_photo_editor
    from eval.photo_edits.run import edit_photographs
    from eval.photo_edits.writer import Writer, captioner_config

    engine = None
    if config.captioner is not None:
        engine = captioner_config(config.captioner, config.captioner_model, config.device)
        engine.identity()  # a captioner that cannot be asked is told before large models are loaded
    editor = load_photo_editor(config)
    writer = None if engine is None else Writer(engine.load(), editor.limits)
    made = edit_photographs(config, editor, writer)
    if made.not_made:
        reasons = [f"{name}: {reason}" for name, reason in made.not_made.items()]
        alone = len(config.image) < 2 and not made.files
        raise ValueError(
            next(iter(made.not_made.values())) if alone else f"not all edits were made; {'; '.join(reasons)}"
        )
    return made.files


def _check_names(config: PhotoEditOptions) -> None:
    """Refuse what is not there, before anything heavy is imported. Of several pictures some may be missing."""
    if config.encoder is not None:
        folder_or_hub_id(config.encoder, "--encoder")
    if config.backbone is not None:
        folder_or_hub_id(config.backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    if config.out is not None and (config.out.is_file() or config.out.suffix.lower() in SUFFIXES):
        raise ValueError(f"--out is {config.out}, a file; expected a folder, in which several files are written")
    for mask in (config.mask, *(earlier.mask for earlier in config.earlier)):
        if mask is not None and mask not in AUTOMATIC:
            try:
                open_photograph(mask)
            except ValueError as error:
                raise ValueError(f"--mask is {mask}, expected {', '.join(AUTOMATIC)} or a picture: {error}") from error
    if len(config.image) == 1:
        open_photograph(config.image[0])
    elif config.image and not any(map(_is_picture, config.image)):
        raise ValueError(f"there is no picture at {', '.join(config.image)} that can be read")


def _is_picture(name: str) -> bool:
    """Whether a file is a picture that can be read."""
    try:
        open_photograph(name)
    except ValueError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.edit", edit_pictures, argv)


if __name__ == "__main__":
    main()
