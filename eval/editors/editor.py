"""The interface of an editing method to an evaluation, and the meter that counts its costs.

A method only inverts and edits. Network evaluations (NFE), seconds and peak memory are counted here, from outside, so
no method can count its own work differently.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from models.local_blend import BlendWords

Settings = Mapping[str, Any]
"""Settings as JSON."""


@dataclass(frozen=True)
class WordControl:
    """What a user of Prompt-to-Prompt says of single words.

    Args:
        weights: factors for the maps of words of the target, while cross attention is shared.
        blend: words outside of whose places nothing changes.
        swap: word i of the target takes the map of word i of the source; else words that both have take theirs.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    blend: BlendWords = field(default_factory=BlendWords)
    swap: bool = False


@dataclass(frozen=True)
class EditRequest:
    """One edit for each of B inverted images.

    Args:
        prompt: target description of each image.
        instruction: the same wish as an order ("make the circle red"), for methods that take one.
        mask: the places that may change, [B, 1, H, W] in [0, 1], for methods that take a user's mask.
        strength: strength of the edit on the method's own scale; None for the method's default.
        words: the words that say where each image changes (PIE-Bench's blended words) or None, for methods that
            blend or weight by them.
        seed: seed of the randomness that a method needs at the edit.
        truth: the true edits [B, 3, H, W], for the reference `truth` alone.
        control: what a user says of words, in the place of `words`, for editors by Prompt-to-Prompt.
    """

    prompt: tuple[str, ...]
    instruction: tuple[str, ...] | None = None
    mask: Tensor | None = None
    strength: float | None = None
    words: tuple[BlendWords | None, ...] | None = None
    seed: int = 0
    truth: Tensor | None = None
    control: WordControl | None = None


@dataclass(frozen=True)
class InvertedImages:
    """Everything that a method remembers of B images.

    Args:
        prompts: the images' descriptions.
        noises: the noises [B, C, h, w] that carry the images to the edit, by the timestep that uses them.
        aggregate: draws from the distributions of which `noises` are the means, where a method has such; by timestep.
        state: whatever else the method needs; nobody else looks at it.
    """

    prompts: tuple[str, ...]
    noises: dict[float, Tensor]
    state: Any
    aggregate: dict[float, Tensor] = field(default_factory=dict)


class Editor(Protocol):
    """A method that inverts images once and edits them many times."""

    @property
    def name(self) -> str:
        """The name in tables."""
        ...

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The UNets whose evaluations count."""
        ...

    @property
    def strengths(self) -> tuple[float, ...]:
        """Points of a sweep over the method's own strength, from weak to strong; one point if it has none."""
        ...

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits but the backbone: steps, guidance, options, other networks."""
        ...

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """Invert `images` [B, 3, H, W] in [-1, 1], described by `prompts` (B)."""
        ...

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The edited images [B, 3, H, W] in [-1, 1]."""
        ...


def settings_of(editor: Editor) -> dict[str, Any]:
    """Return the settings of an editor with the class that they belong to."""
    return {"class": type(editor).__name__, **editor.settings}


@runtime_checkable
class ReconstructingEditor(Editor, Protocol):
    """An editor that can also give back its input step by step."""

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The estimate of the image's latent [B, C, h, w] after each step with the source's own prompt."""
        ...


@runtime_checkable
class ShareEditor(Editor, Protocol):
    """An editor that takes strengths from 0 to 1 alone: they are shares of its steps."""

    strength_is_share: bool


@runtime_checkable
class TargetFittingEditor(Editor, Protocol):
    """An editor whose edits begin with work that depends on the target but not on the strength."""

    def fit_target(self, inversion: InvertedImages, request: EditRequest) -> None:
        """Does that work; `edit` of the same inversion and prompts finds it done, or does it itself."""
        ...


@runtime_checkable
class MaskingEditor(Editor, Protocol):
    """An editor whose last edit may have been bounded by a mask."""

    @property
    def last_mask(self) -> Tensor | None:
        """The places where that edit could change the pictures, [B, 1, h, w] in [0, 1]; None if everywhere."""
        ...


@dataclass(frozen=True)
class Cost:
    """Costs of one call.

    Args:
        images: number of images in the call.
        nfe: network evaluations an image.
        seconds: wall-clock seconds an image.
        peak_gb: peak of allocated GPU memory in 10^9 bytes; None on a CPU, where torch keeps no such count.
    """

    images: int
    nfe: float
    seconds: float
    peak_gb: float | None

    def __add__(self, after: "Cost") -> "Cost":
        """The cost of two calls in a row on the same images."""
        assert self.images == after.images, f"costs of {self.images} and of {after.images} images"
        peaks = [peak for peak in (self.peak_gb, after.peak_gb) if peak is not None]
        return Cost(self.images, self.nfe + after.nfe, self.seconds + after.seconds, max(peaks, default=None))


@contextmanager
def counted_evaluations(networks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Append the batch size of every forward pass of `networks` within the block to the yielded list."""
    sizes: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = (kwargs[name] for name in ("sample", "hidden_states") if name in kwargs)  # a UNet's, a transformer's
        sizes.append(len(args[0] if args else next(named)))

    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network.register_forward_pre_hook(note, with_kwargs=True))
        yield sizes


@contextmanager
def metered(networks: Sequence[nn.Module], images: int, costs: list[Cost], device: torch.device) -> Iterator[None]:
    """Append the cost of the block to `costs`: evaluations of `networks` and seconds for each of `images`."""
    on_cuda = device.type == "cuda"
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with counted_evaluations(networks) as sizes:
        yield
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else None
    costs.append(Cost(images, sum(sizes) / images, seconds / images, peak))


@dataclass
class MeasuredEditor:
    """An editor that notes the cost of each of its calls; made by `measured`."""

    editor: Editor
    invert_costs: list[Cost] = field(default_factory=list)
    fit_costs: list[Cost] = field(default_factory=list)
    edit_costs: list[Cost] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The editor's name."""
        return self.editor.name

    @torch.no_grad()
    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """`editor.invert`, metered."""
        with self._meter(len(images), self.invert_costs, images.device):
            return self.editor.invert(images, prompts)

    @torch.no_grad()
    def fit_target(self, inversion: InvertedImages, request: EditRequest) -> None:
        """`editor.fit_target`, metered; of an editor that fits nothing it costs nothing."""
        with self._meter(len(request.prompt), self.fit_costs, self._device()):
            if isinstance(self.editor, TargetFittingEditor):
                self.editor.fit_target(inversion, request)

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """`editor.edit`, metered."""
        with self._meter(len(request.prompt), self.edit_costs, self._device()):
            return self.editor.edit(inversion, request)

    def _device(self) -> torch.device:
        networks = self.editor.networks
        return next(networks[0].parameters()).device if networks else torch.device("cpu")

    def _meter(self, images: int, costs: list[Cost], device: torch.device) -> AbstractContextManager[None]:
        return metered(self.editor.networks, images, costs, device)


def measured(editor: Editor) -> MeasuredEditor:
    """`editor` with its costs counted."""
    return MeasuredEditor(editor)
