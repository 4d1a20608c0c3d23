"""Inversions of one picture that several editors share: a fit of minutes serves every editor that needs it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from eval.editors.editor import Cost, Editor, InvertedImages, Settings, measured, metered


@runtime_checkable
class KnownInversion(Editor, Protocol):
    """An editor that says what its inversions depend on; of two that say the same, one may edit the other's."""

    @property
    def inversion_settings(self) -> Settings:
        """Everything that decides an inversion, the models by their `id`."""
        ...


@runtime_checkable
class BuiltOnInversion(Editor, Protocol):
    """An editor whose inversions are made of another one's."""

    @property
    def inversion(self) -> Editor | None:
        """The other editor, or None where none is needed."""
        ...

    def invert_on(self, images: Tensor, prompts: Sequence[str], base: InvertedImages) -> InvertedImages:
        """The editor's own inversion of `images` [B, 3, H, W], of that editor's."""
        ...


def inversion_key(editor: Editor) -> str:
    """A key that is equal for editors whose inversions rest on the same one."""
    if isinstance(editor, BuiltOnInversion) and editor.inversion is not None:
        return inversion_key(editor.inversion)
    if isinstance(editor, KnownInversion):
        return json.dumps(editor.inversion_settings, sort_keys=True)
    return f"{id(editor)}"


@dataclass
class PictureInversions:
    """What has been inverted of one picture, by the inversion's key and the picture's description."""

    found: dict[tuple[str, str], tuple[InvertedImages, Cost]] = field(default_factory=dict)

    def of(self, editor: Editor, image: Tensor, prompt: str) -> tuple[InvertedImages, Cost]:
        """The inversion of `image` [1, 3, H, W] and its cost, which is the same whether it was there already or not."""
        if isinstance(editor, BuiltOnInversion) and editor.inversion is not None:
            base, cost = self.of(editor.inversion, image, prompt)
            own: list[Cost] = []
            with metered(editor.networks, len(image), own, image.device):
                inverted = editor.invert_on(image, (prompt,), base)
            return inverted, cost + own[0]
        key = (inversion_key(editor), prompt)
        if key not in self.found:
            meter = measured(editor)
            inverted = meter.invert(image, (prompt,))
            self.found[key] = inverted, meter.invert_costs[0]
        return self.found[key]
