"""The edits of several photographs with models that are loaded once; a bad one is set aside and named."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from data.jobs.progress import Progress
from eval.photo_edits.editing import InvertedPhotograph, PhotoEdit, PhotoEditor
from eval.photo_edits.options import Aim, PhotoEditOptions
from eval.photo_edits.photographs import open_photograph
from eval.photo_edits.texts import EditTexts, write_texts
from eval.photo_edits.writer import Writer
from eval.photo_edits.written import FinishedEdit, free_path, write_edits

logger = logging.getLogger(__name__)


@dataclass
class EditsMade:
    """The files of edits, and by the photographs' names why some were not made."""

    files: list[Path] = field(default_factory=list)
    not_made: dict[str, str] = field(default_factory=dict)


def edit_photographs(options: PhotoEditOptions, editor: PhotoEditor, writer: Writer | None) -> EditsMade:
    """Edit the photographs of `options` one after another, and write what comes of each as soon as it is there.

    Args:
        options: the options of the command.
        editor: the loaded models.
        writer: the captioner, where one is given.

    Raises:
        CaptionerError: the captioner cannot go on.
        OSError: files cannot be written.
    """
    made = EditsMade()
    each = (len(options.target) + len(options.instruction)) * len(_strengths(options))
    total = max(1, len(options.image)) * each
    prompts: Sequence[str | None] = options.prompt or (None,)
    if len(prompts) == 1:
        prompts = [*prompts] * len(options.image)
    with Progress("edits", {"edits": total}, shown=total > 1, unit="edit") as progress:
        progress.note(())
        if not options.image:
            texts = write_texts(options, options.prompt[0], _no_picture, writer)
            _check_all(options, editor, texts)
            inverted = editor.sample(texts.prompt.text, options.steps)
            _edit_all(options, editor, inverted, texts, (options.out or Path()) / "noise_edited", progress, made)
        for name, prompt, path in zip(options.image, prompts, _file_names(options), strict=True):
            try:
                photograph = open_photograph(name, str(Path(name).resolve()))
                texts = write_texts(options, prompt, partial(editor.seen, photograph), writer)
                _check_all(options, editor, texts)
                inverted = editor.invert(photograph, texts.prompt.text, options.steps)
                _edit_all(options, editor, inverted, texts, path, progress, made)
            except ValueError as error:
                made.not_made[name] = str(error)
                if len(options.image) > 1:
                    logger.warning("%s is set aside: %s", name, error)
    return made


def _check_all(options: PhotoEditOptions, editor: PhotoEditor, texts: EditTexts) -> None:
    """Raises ValueError for edits that the method does not make, before an inversion that may take minutes."""
    for aims in _aims(options, texts):
        editor.check(texts.prompt.text, aims, options.mask)


def _aims(options: PhotoEditOptions, texts: EditTexts) -> list[list[Aim]]:
    """The aims of each edit of a photograph, those of one target one after the other."""
    return [
        [Aim(target.written.text, strength), *texts.also]
        for target in texts.targets
        for strength in _strengths(options)
    ]


def _edit_all(
    options: PhotoEditOptions,
    editor: PhotoEditor,
    inverted: InvertedPhotograph,
    texts: EditTexts,
    path: Path,
    progress: Progress,
    made: EditsMade,
) -> None:
    """All edits of one photograph, written below `path`, or beside what is there already."""
    start: InvertedPhotograph | PhotoEdit = inverted
    for earlier in options.earlier:
        aims = [Aim.read(words, "--earlier") for words in earlier.aims]
        start = editor.edit(start, aims, earlier.mask, earlier.threshold)
    targets = [target for target in texts.targets for _ in _strengths(options)]
    finished = []
    for target, wanted in zip(targets, _aims(options, texts), strict=True):
        finished.append(FinishedEdit(target, editor.edit(start, wanted, options.mask, options.threshold)))
        progress.tick()
    free = free_path(path, len(finished))
    made.files += write_edits(free, inverted, texts, finished)
    _tell(free, inverted, texts, finished)
    if free != path:
        logger.info("files of %s were there already and stay; these edits are %s", path, free.name)
    if texts.unwritten:
        made.not_made[inverted.photograph.name] = "; ".join(texts.unwritten)


def _tell(path: Path, inverted: InvertedPhotograph, texts: EditTexts, finished: Sequence[FinishedEdit]) -> None:
    """Log what was written, and what a user should know of it."""
    name = inverted.photograph.name or "the picture from noise"
    logger.info("%s: %s", name, inverted.prompt)
    notes = [*texts.prompt.notes, *texts.unwritten]
    for one in finished:
        notes += [*one.target.written.notes, *one.edit.notes]
    for note in dict.fromkeys(notes):
        logger.warning("%s: %s", name, note)
    nfe, seconds = (sum(getattr(one.edit.cost, name) for one in finished) for name in ("nfe", "seconds"))
    logger.info(
        "wrote %s.png (a sheet), %s_1.png and on (the edits alone), %s.json (texts and figures); inverted by %g "
        "evaluations in %.2f s, edits: %d, by %g in %.2f s",
        *(path, path, path, inverted.cost.nfe, inverted.cost.seconds, len(finished), nfe, seconds),
    )


def _strengths(options: PhotoEditOptions) -> tuple[float | None, ...]:
    return (None,) if options.strengths is None else options.strengths


def _file_names(options: PhotoEditOptions) -> list[Path]:
    """Where each photograph's edits go, without endings: all different, whatever folders the photographs are from."""
    paths: list[Path] = []
    for source in map(Path, options.image):
        folder, number = source.parent if options.out is None else options.out, 1
        while (path := folder / f"{source.stem}{'' if number == 1 else f'-{number}'}_edited") in paths:
            number += 1
        paths.append(path)
    return paths


def _no_picture() -> Image.Image:
    raise AssertionError("a picture from noise has its prompt")
