"""The texts with which a photograph is edited: as the user gave them, or as a captioner writes them from those."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from eval.photo_edits.options import Aim, PhotoEditOptions
from eval.photo_edits.writer import Writer, WrittenPrompt
from models.words import bare_words


@dataclass(frozen=True)
class TargetText:
    """The target of one edit, with the instruction by which it was written, if it was."""

    written: WrittenPrompt
    instruction: str | None = None


@dataclass(frozen=True)
class EditTexts:
    """The texts of a photograph's edits.

    Args:
        prompt: the photograph's description.
        targets: one for each edit.
        also: what goes into every edit beside its target.
        unwritten: why some targets could not be written, a sentence each.
    """

    prompt: WrittenPrompt
    targets: tuple[TargetText, ...]
    also: tuple[Aim, ...]
    unwritten: tuple[str, ...]


def write_texts(
    options: PhotoEditOptions, prompt: str | None, picture: Callable[[], Image.Image], writer: Writer | None
) -> EditTexts:
    """The texts of one photograph.

    A prompt of fewer than `expand_below` words is expanded where there is a captioner, and then the targets become
    the expanded prompt with their change.

    Args:
        options: targets, instructions and further descriptions, as the user gave them.
        prompt: the photograph's description; None for one that the captioner writes.
        picture: gives what the networks see of the photograph.
        writer: the captioner; options that need one have been refused without.

    Raises:
        ValueError: the captioner described nothing, or wrote none of the targets.
        CaptionerError: it cannot go on.
    """
    short = None
    if prompt is None:
        assert writer is not None, "options without a prompt have a captioner"
        described = writer.caption(picture())
    elif writer is not None and len(bare_words(prompt)) < options.expand_below:
        short, described = prompt, writer.expand(prompt)
    else:
        described = WrittenPrompt(prompt)

    def as_detailed(text: str) -> WrittenPrompt:
        """A text beside the short prompt in the words of the expanded one."""
        if short is None:
            return WrittenPrompt(text)
        assert writer is not None
        return writer.target(described.text, f"show {text} instead of {short}")

    def by_instruction(instruction: str) -> WrittenPrompt:
        assert writer is not None, "options with an instruction have a captioner"
        return writer.target(described.text, instruction)

    targets, unwritten = list[TargetText](), list[str]()
    for write, given in ((as_detailed, options.target), (by_instruction, options.instruction)):
        for text in given:
            try:
                targets.append(TargetText(write(text), text if write is by_instruction else None))
            except ValueError as error:
                unwritten.append(str(error))
    if not targets:
        raise ValueError("; ".join(unwritten))
    also = [Aim.read(words) for words in options.also]
    detailed = tuple(Aim(as_detailed(aim.text).text, aim.strength) for aim in also)
    return EditTexts(described, tuple(targets), detailed, tuple(unwritten))
