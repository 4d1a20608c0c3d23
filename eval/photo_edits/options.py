"""The options of edits of photographs: values alone, so a command line knows them before torch loads.

What an edit's settings hold is read back by `python -m eval.edit --config SETTINGS.json`, which makes it again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from eval.editors.options import ImagicConfig, NullTextSchedule
from eval.harness.options import Dtype
from models.options import AUTOMATIC, MASK_THRESHOLD, FitSchedule, Outside

FROM_NOISE = "prompt_to_prompt"
"""The editor that also edits a picture which it samples itself."""

EXPAND_BELOW = 4
"""Words below which a prompt is expanded by a captioner, by default."""


@dataclass(frozen=True)
class Aim:
    """A description towards which an edit goes, and how far; None for the method's own strength."""

    text: str
    strength: float | None = None

    @classmethod
    def read(cls, text: str, option: str = "--also") -> "Aim":
        """The aim of words such as "a dog at night=0.5".

        Raises:
            ValueError: they do not end with = and a number.
        """
        words, equals, number = text.rpartition("=")
        try:
            found = cls(words.strip(), float(number))
        except ValueError:
            found = cls("", 0.0)
        if not equals or not found.text or not isfinite(found.strength or 0.0):
            raise ValueError(f'{option} is {text!r}, expected a description with its strength such as "at night=0.5"')
        return found

    def words(self) -> str:
        """What `read` reads; a strength that was left open is 1."""
        return f"{self.text}={1.0 if self.strength is None else float(self.strength)!r}"


@dataclass(frozen=True)
class EarlierEdit:
    """An edit on top of which another one is made.

    Args:
        aims: descriptions with their strengths, such as "a dog on a sofa=0.8".
        mask: an automatic mask by its name, a picture whose white may change, or null for none.
        threshold: threshold of an automatic mask.

    Raises:
        ValueError: no aims, one without its strength, or a threshold that is no share.
    """

    aims: tuple[str, ...]
    mask: str | None = None
    threshold: float = MASK_THRESHOLD

    def __post_init__(self) -> None:
        if not self.aims:
            raise ValueError('--earlier has no aims, expected descriptions with their strengths such as "a dog=0.8"')
        for text in self.aims:
            Aim.read(text, "--earlier")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--earlier has threshold {self.threshold:g}, expected a share from 0 to 1")


@dataclass(frozen=True)
class MethodOptions:
    """The method that edits, and its models.

    Args:
        encoder: folder or hub id of an export of TurboEdit or StyleDiffusion (train.export); beside --editor that of
            the network of stylediffusion_amortised or stylediffusion_refined.
        editor: a method without an export, on --backbone: prompt_to_prompt, null_text, imagic, stylediffusion (fitted
            to the photograph) or another many-step editor of docs/evaluation.md.
        backbone: folder or hub id of a Stable Diffusion pipeline, for --editor.
        variant: file variant of its weights, such as fp16.
        outside: what stands in the end where an edit of TurboEdit changes nothing: source, the picture itself, or
            reconstruction, what the generator has made of its noise, as in the paper.
        clip: CLIP whose image tokens stylediffusion maps, where no --encoder brings its own; folder or hub id.
        guidance: weight of classifier-free guidance; null for 7.5, and of a StyleDiffusion export for its own.
        null_text: the optimisations of null-text inversion.
        imagic: the fits of Imagic.
        fit: the fit of stylediffusion.
        weights: factors for the attention to words of the target, such as red=2 (editors with Prompt-to-Prompt).
        blend: words of prompt or target outside of whose places nothing changes (local blend; the same editors).
        swap: true takes the target for the prompt with single words swapped, each for the one in its place (the same
            editors).
        seed: seed of what an --editor draws, and of the noise where no photograph is given.
        dtype: type of UNets and text encoders; auto is what an export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL.
        device: device by name, such as cpu or cuda:1; auto takes a GPU where there is one.
    """

    encoder: str | None = None
    editor: str | None = None
    backbone: str | None = None
    variant: str | None = None
    outside: Outside = "source"
    clip: str = "openai/clip-vit-base-patch16"
    guidance: float | None = None
    null_text: NullTextSchedule = field(default_factory=NullTextSchedule)
    imagic: ImagicConfig = field(default_factory=ImagicConfig)
    fit: FitSchedule = field(default_factory=FitSchedule)
    weights: tuple[str, ...] = ()
    blend: tuple[str, ...] = ()
    swap: bool = False
    seed: int = 0
    dtype: Dtype = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.editor is None and self.encoder is None:
            raise ValueError("--encoder is missing: the export that edits; or give --editor and --backbone")
        if self.editor is None and self.backbone is not None:
            raise ValueError(f"--backbone is {self.backbone}, but no --editor runs on it; give one, such as null_text")
        if self.editor is not None and self.backbone is None:
            raise ValueError(f"--editor {self.editor} needs --backbone, a Stable Diffusion pipeline")
        for text in self.weights:
            Aim.read(text, "--weights")


@dataclass(frozen=True)
class PhotoEditOptions(MethodOptions):
    """Options of edits of photographs. A list is typed as several values behind its option.

    Args:
        image: the photographs, of any shape; left out, --editor prompt_to_prompt edits what the prompt gives from
            noise.
        prompt: description of each photograph, or one for all; without it --captioner writes them.
        target: descriptions of edited photographs; each makes an edit of every photograph.
        instruction: wishes such as "make the cat black", by each of which the captioner changes the prompt to a target.
        also: further descriptions in the same edits, each with a strength of its own: "a cat at night=0.5".
        strengths: places between prompt (0) and target (1), each of which makes an edit; below 0 and above 1
            extrapolate. Of --editor it is the method's own strength (docs/evaluation.md). Null for the method's
            default.
        mask: auto, an automatic mask by its name (prediction, noise, attention), or a picture whose white may change;
            null for none.
        threshold: share of its strongest place above which an automatic mask lets a place change.
        steps: steps of an encoder, fewer than it was trained on, or DDIM steps of --editor; null for all, or for 50.
        captioner: who writes captions and changes them. Folder or hub id of an image-and-text model such as
            llava-hf/llava-1.5-7b-hf, or the URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
        captioner_model: name under which the server has its model; null for the only one that it names.
        expand_below: words below which a prompt that you give is expanded by the captioner to a detailed one, as
            encoders have learned them, and your targets with it; 0 for never.
        earlier: edits that are made first, each on top of the one before.
        out: folder of what is written; by default beside each photograph.
    """

    image: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    instruction: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    strengths: tuple[float, ...] | None = None
    mask: str | None = None
    threshold: float = MASK_THRESHOLD
    steps: int | None = None
    captioner: str | None = None
    captioner_model: str | None = None
    expand_below: int = EXPAND_BELOW
    earlier: tuple[EarlierEdit, ...] = ()
    out: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target and not self.instruction:
            raise ValueError("--target is missing: a description of the edited picture; or give an --instruction")
        if not self.image and self.editor != FROM_NOISE:
            raise ValueError(f"--image is missing: the photograph; only --editor {FROM_NOISE} edits without one")
        if self.editor is not None and (self.also or self.earlier or self.mask in AUTOMATIC):
            raise ValueError(
                f"--also, --earlier and automatic masks (--mask auto) are TurboEdit's; --editor {self.editor} takes "
                "one target at a time, and a mask that is a picture"
            )
        if not self.prompt and (self.captioner is None or not self.image):
            raise ValueError("--prompt is missing: a description of the picture; or give --captioner, which writes it")
        if self.captioner is None and self.instruction:
            raise ValueError("--instruction needs --captioner, which changes the prompt by it; or give a --target")
        if len(self.prompt) > 1 and len(self.prompt) != len(self.image):
            raise ValueError(
                f"--prompt has {len(self.prompt)} texts for {len(self.image)} pictures; give one for all, or one for "
                "each (a text of several words stands in quotes)"
            )
        if self.strengths is not None and not (self.strengths and all(map(isfinite, self.strengths))):
            raise ValueError(f"--strengths is {list(self.strengths)}, expected numbers such as 0.5,1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold is {self.threshold:g}, expected a share from 0 to 1")
        if self.threshold != MASK_THRESHOLD and self.mask not in AUTOMATIC:
            raise ValueError(
                f"--threshold is {self.threshold:g}, which is for automatic masks; give --mask auto, or leave it out"
            )
        for text in self.also:
            Aim.read(text)

    def aims(self, target: str, strength: float | None) -> tuple[Aim, ...]:
        """The aims of one edit."""
        return (Aim(target, strength), *map(Aim.read, self.also))


TEXTS = ("instruction", "captioner", "captioner_model", "expand_below")
"""Options that make texts: where the texts are there, they decide nothing."""

PLACES = ("device", "out")
"""Options of the machine and its folders."""


def edit_settings(options: PhotoEditOptions) -> dict[str, Any]:
    """Options as the plain JSON that `eval.edit --config` reads: those that decide an edit and are no defaults."""
    plain = {name: _plain(value) for name, value in asdict(options).items() if name not in TEXTS + PLACES}
    return {
        one.name: plain[one.name]
        for one in fields(options)
        if one.name in plain and plain[one.name] != _plain(_default(one))
    }


def _default(one: Any) -> Any:
    return asdict(one.default_factory()) if callable(one.default_factory) else one.default


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
