"""Edits of photographs with models that are loaded once: an inversion is kept, edits come at the photograph's size.

Threads may share a `PhotoEditor`: its calls wait for each other, so that each counts its own evaluations.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.captioning.tokens import TokenLimits
from eval.editors.editor import Cost, metered
from eval.photo_edits.method import Mask, MethodEdit, PhotoMethod, StartingPoint
from eval.photo_edits.options import Aim, EarlierEdit, MethodOptions, PhotoEditOptions, edit_settings
from eval.photo_edits.photographs import Photograph, open_photograph
from eval.photo_edits.sight import Sight, seen_change
from models.full_size import at_full_size
from models.options import AUTOMATIC, MASK_THRESHOLD
from models.shapes import Cutout, WantedShape
from models.upright import fitted

DRAWN = "mask.png"
"""Name under which settings look for a mask that was no file; `PhotoEdit.drawn` is the picture to save there."""

_KEPT = 16
"""Inversions that are kept; one of SDXL-Turbo has about a megabyte."""


@dataclass(frozen=True)
class InvertedPhotograph:
    """A photograph, inverted: what edits of it begin with.

    Args:
        photograph: the photograph.
        prompt: description of it.
        steps: number of steps, None for all of the method's.
        start: the method's own form of it.
        cost: evaluations and seconds that it took.
        reconstruct: makes the reconstruction.
    """

    photograph: Photograph
    prompt: str
    steps: int | None
    start: StartingPoint
    cost: Cost
    reconstruct: Callable[[], Image.Image | None]

    @cached_property
    def reconstruction(self) -> Image.Image | None:
        """The photograph as the method gives it back, in the size that the networks see; None if it gives none."""
        return self.reconstruct()

    @property
    def noises(self) -> Mapping[float, Tensor]:
        """The inversion's noise [1, 4, h, w] by timestep."""
        return self.start.noises

    @property
    def base(self) -> Image.Image:
        """The picture, at the photograph's size, outside of whose changes nothing is touched."""
        return self.photograph.picture

    @property
    def source(self) -> "InvertedPhotograph":
        """The inversion itself."""
        return self

    @property
    def text(self) -> str:
        """The description from which an edit goes on."""
        return self.prompt

    @property
    def before(self) -> tuple[EarlierEdit, ...]:
        """The edits that lie between the photograph and here: none."""
        return ()


@dataclass(frozen=True)
class PhotoEdit:
    """An edit of a photograph, on which another one may be made.

    Args:
        on: the inversion, or the edit on top of which this one is.
        aims: descriptions and strengths.
        mask: name or file of the mask that was asked for.
        threshold: threshold of an automatic mask.
        drawn: the mask as a picture, where it was drawn.
        made: what the method made.
        sights: what the text encoders see of each aim.
        cost: evaluations and seconds of the edit alone.
        notes: what a user should know, a sentence each.
        settings: options of `eval.edit` that make the edit again, as plain JSON.
    """

    on: "InvertedPhotograph | PhotoEdit"
    aims: tuple[Aim, ...]
    mask: str | None
    threshold: float
    drawn: Image.Image | None
    made: MethodEdit
    sights: tuple[Sight, ...]
    cost: Cost
    notes: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def seen(self) -> Image.Image:
        """The edited picture in the size in which the networks make it."""
        return self.made.picture

    @property
    def source(self) -> InvertedPhotograph:
        """The inversion with which it all began."""
        return self.on.source

    @property
    def start(self) -> StartingPoint | None:
        """Where a further edit starts; None where the method knows none."""
        return self.made.start

    @property
    def text(self) -> str:
        """The description from which a further edit goes on."""
        return self.aims[0].text

    @property
    def before(self) -> tuple[EarlierEdit, ...]:
        """This edit and all before it, as a further one has them in its settings."""
        aims = tuple(aim.words() for aim in self.aims)
        return (*self.on.before, EarlierEdit(aims, self.mask, self.threshold))

    @cached_property
    def picture(self) -> Image.Image:
        """The edit at the photograph's full size; with a mask in the pixels of what it was made on, outside of it."""
        return at_full_size(self.on.base, [self.seen], [self._cutout], self._mask)[0]

    @cached_property
    def mask_picture(self) -> Image.Image | None:
        """The mask as it was used, in grey at the photograph's size (white is edited); None without one."""
        if self._mask is None:
            return None
        black = Image.new("RGB", self.source.photograph.picture.size)
        white = Image.new("RGB", self.seen.size, "white")
        return at_full_size(black, [white], [self._cutout], self._mask)[0].convert("L")

    @cached_property
    def base(self) -> Image.Image:
        """The edit on the whole photograph, whose margins stay where the networks see less of it."""
        whole = self.source.photograph.picture
        if self.picture.size == whole.size:
            return self.picture
        whole = whole.copy()
        whole.paste(self.picture, self._cutout.crop[:2])
        return whole

    @property
    def _cutout(self) -> Cutout:
        return self.source.start.cutout

    @property
    def _mask(self) -> Image.Image | Tensor | None:
        return self.made.weights if self.drawn is None else self.drawn


class PhotoEditor:
    """Loaded models, and what is done with them.

    Args:
        method: the method that inverts and edits.
        options: the options with which it was loaded; settings of edits begin with them.
        kept: number of inversions that are kept.
    """

    def __init__(self, method: PhotoMethod, options: MethodOptions, kept: int = _KEPT) -> None:
        self.method = method
        self.options = options
        self.limits = TokenLimits.of(method.backbone.readers if method.backbone.text else ())
        self._alone = RLock()
        self._kept = kept
        self._inversions: OrderedDict[tuple[str, str, int | None], InvertedPhotograph] = OrderedDict()
        self._sights: OrderedDict[tuple[str, str], Sight] = OrderedDict()

    def seen(self, photograph: Photograph) -> Image.Image:
        """What the networks see of a photograph, in their size: what a captioner should describe."""
        backbone, picture = self.method.backbone, photograph.picture
        wanted = WantedShape(backbone.image_size, backbone.multiple)
        height, width = wanted.of([(picture.height, picture.width)])
        return fitted(picture, (width, height))[0]

    def invert(self, photograph: Photograph, prompt: str, steps: int | None = None) -> InvertedPhotograph:
        """Invert a photograph; the same again is found where it is kept.

        Args:
            photograph: the photograph.
            prompt: description of it.
            steps: number of steps; None for all that the method has.

        Raises:
            ValueError: a number of steps that the method does not have, or no description.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; expected a description of the photograph")
        key = photograph.digest, prompt, steps
        with self._alone:
            if key not in self._inversions:
                costs: list[Cost] = []
                with torch.no_grad(), metered(self.method.networks, 1, costs, self._device):
                    start = self.method.invert(photograph.picture, prompt, steps)
                self._inversions[key] = self._inverted(photograph, prompt, steps, start, costs[0])
            self._inversions.move_to_end(key)
            while len(self._inversions) > self._kept:
                self._inversions.popitem(last=False)
            found = self._inversions[key]
        return found if found.photograph.name == photograph.name else replace(found, photograph=photograph)

    def check(
        self, prompt: str, aims: Sequence[Aim], mask: str | Path | Image.Image | None = None
    ) -> tuple[str | None, Image.Image | None]:
        """Refuse an edit that the method does not make, before anything is computed for it.

        Args:
            prompt: description of what would be edited.
            aims, mask: arguments of `edit`.

        Returns:
            The mask's name in settings, and its picture where it is drawn.

        Raises:
            ValueError: no aim, a mask that is no picture, or what the method does not do.
        """
        if not aims or not all(aim.text.strip() for aim in aims):
            raise ValueError("the target is empty; expected a description of the edited picture")
        name, drawn = _read_mask(mask)
        self.method.check(prompt, aims, name if drawn is None else drawn)
        return name, drawn

    def sample(self, prompt: str, steps: int | None = None) -> InvertedPhotograph:
        """A picture that the prompt gives from noise, in the place of a photograph (Prompt-to-Prompt's own setting).

        Raises:
            ValueError: the method edits photographs alone.
        """
        with self._alone:
            costs: list[Cost] = []
            with torch.no_grad(), metered(self.method.networks, 1, costs, self._device):
                start = self.method.sample(prompt, steps)
                picture = self.method.reconstruct(start)
        assert picture is not None, "what is sampled is a picture"
        photograph = replace(open_photograph(picture), name="")
        return InvertedPhotograph(photograph, prompt, steps, start, costs[0], lambda: picture)

    def edit(
        self,
        on: InvertedPhotograph | PhotoEdit,
        aims: Sequence[Aim],
        mask: str | Path | Image.Image | None = None,
        threshold: float = MASK_THRESHOLD,
    ) -> PhotoEdit:
        """Edit an inverted photograph, or an edit once more.

        Args:
            on: what is edited.
            aims: one or several descriptions, each with its strength.
            mask: an automatic mask by its name, a picture or its file (white may change), or None.
            threshold: threshold of an automatic mask.

        Raises:
            ValueError: no aim, a mask that is none or of another aspect, or what the method does not do.
        """
        name, drawn = self.check(on.text, aims, mask)
        if on.start is None:
            raise ValueError("this method edits photographs alone, and makes no edits on top of edits")
        asked: Mask = name if drawn is None else drawn
        with self._alone:
            costs: list[Cost] = []
            with torch.no_grad(), metered(self.method.networks, 1, costs, self._device):
                made = self.method.edit(on.start, aims, asked, threshold)
            sights = tuple(self.sight(on.text, aim.text) for aim in aims)
        notes = tuple(dict.fromkeys(note for sight in sights for note in sight.notes))
        settings = self._settings(on, aims, name, threshold)
        return PhotoEdit(on, tuple(aims), name, threshold, drawn, made, sights, costs[0], notes, settings)

    def sight(self, prompt: str, target: str) -> Sight:
        """What the text encoders see of a change; the same again is found where it is kept."""
        with self._alone:
            if (prompt, target) not in self._sights:
                self._sights[prompt, target] = seen_change(self.method.backbone, prompt, target)
            while len(self._sights) > 8 * self._kept:
                self._sights.popitem(last=False)
            return self._sights[prompt, target]

    def _inverted(
        self, photograph: Photograph, prompt: str, steps: int | None, start: StartingPoint, cost: Cost
    ) -> InvertedPhotograph:
        def reconstruct() -> Image.Image | None:
            with self._alone, torch.no_grad():
                return self.method.reconstruct(start)

        return InvertedPhotograph(photograph, prompt, steps, start, cost, reconstruct)

    def _settings(
        self, on: InvertedPhotograph | PhotoEdit, aims: Sequence[Aim], mask: str | None, threshold: float
    ) -> dict[str, Any]:
        source, first = on.source, aims[0]
        method = {one.name: getattr(self.options, one.name) for one in fields(MethodOptions)}
        return edit_settings(
            PhotoEditOptions(
                **method | {name: _from_anywhere(method[name]) for name in ("encoder", "backbone", "clip")},
                image=(source.photograph.name,) if source.photograph.name else (),
                prompt=(source.prompt,),
                target=(first.text,),
                strengths=None if first.strength is None else (float(first.strength),),
                also=tuple(aim.words() for aim in aims[1:]),
                mask=mask,
                threshold=threshold if mask in AUTOMATIC else MASK_THRESHOLD,
                steps=source.steps,
                earlier=on.before,
            )
        )

    @property
    def _device(self) -> torch.device:
        return next(self.method.networks[0].parameters()).device


def _read_mask(mask: str | Path | Image.Image | None) -> tuple[str | None, Image.Image | None]:
    """The name of a mask in settings, and its picture where it is drawn."""
    if mask is None or (isinstance(mask, str) and mask in AUTOMATIC):
        return mask, None
    return DRAWN if isinstance(mask, Image.Image) else str(Path(mask).resolve()), open_photograph(mask).picture


def _from_anywhere(name: str | None) -> str | None:
    """A folder by its absolute path; a hub id, or None, as it is."""
    return name if name is None or not Path(name).exists() else str(Path(name).resolve())
