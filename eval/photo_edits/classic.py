"""The editors of evaluations on one photograph, or on a picture that a prompt gives from noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from eval.editors.editor import (
    Editor,
    EditRequest,
    InvertedImages,
    ReconstructingEditor,
    ShareEditor,
    WordControl,
)
from eval.editors.few_steps import decode_latents
from eval.editors.guided import GuidedEditor
from eval.photo_edits.method import Mask, MethodEdit, StartingPoint
from eval.photo_edits.options import Aim, MethodOptions
from models.backbone import Backbone
from models.ddim import matching
from models.local_blend import BlendWords
from models.masks import drawn_mask, read_mask
from models.pictures import to_output, to_tensor
from models.prompt_to_prompt import Trajectory
from models.shapes import Cutout, WantedShape
from models.word_alignment import replace_alignment
from models.words import has_word, named_tokens


@dataclass(frozen=True)
class EditorState:
    """An editor, and what it remembers of the picture."""

    editor: Editor
    inversion: InvertedImages


class ClassicPhotos:
    """The `PhotoMethod` of an editor of the catalogue.

    Args:
        backbone: the model on which it runs.
        build: makes the editor with a number of steps, None for the usual one.
        options: what users say of words, and the seed.

    Raises:
        ValueError: words for an editor that does not share attention.
    """

    def __init__(self, backbone: Backbone, build: Callable[[int | None], Editor], options: MethodOptions) -> None:
        self._backbone = backbone
        self._build = build
        self._options = options
        self._weights = {aim.text: aim.strength or 0.0 for aim in (Aim.read(w, "--weights") for w in options.weights)}
        self._usual = build(None)
        if (options.weights or options.blend or options.swap) and not isinstance(self._usual, GuidedEditor):
            raise ValueError(
                f"--weights, --blend and --swap need an editor with Prompt-to-Prompt, such as null_text; "
                f"{self._usual.name} does not share attention"
            )
        self.networks: tuple[nn.Module, ...] = self._usual.networks

    @property
    def backbone(self) -> Backbone:
        """The text-to-image model."""
        return self._backbone

    def invert(self, picture: Image.Image, prompt: str, steps: int | None) -> StartingPoint:
        """The editor's inversion of a photograph."""
        editor = self._build(steps)
        shape = WantedShape(self._backbone.image_size, self._backbone.multiple)
        image, (cutout,) = to_tensor(picture, shape, self._backbone.unet.device)
        return _start(editor, editor.invert(image, [prompt]), cutout)

    def sample(self, prompt: str, steps: int | None) -> StartingPoint:
        """Start from noise, from which the prompt gives a picture.

        Raises:
            ValueError: an editor that starts from photographs alone.
        """
        editor, backbone = self._build(steps), self._backbone
        if not isinstance(editor, GuidedEditor):
            raise ValueError(f"{editor.name} edits photographs alone: give --image")
        side, device = backbone.unet.config.sample_size, backbone.unet.device
        noise = torch.randn(
            (1, backbone.unet.config.in_channels, side, side),
            generator=torch.Generator().manual_seed(self._options.seed),
        )
        embedded = backbone.encode_text([prompt])
        null = matching(backbone.encode_text([""]), embedded)
        trajectory = Trajectory(noise.to(device), embedded, (null,) * len(editor.ddim))
        inversion = InvertedImages((prompt,), {editor.ddim.timesteps[0]: trajectory.start}, trajectory)
        return _start(editor, inversion, Cutout.whole(*backbone.pixels((side, side))))

    def reconstruct(self, start: StartingPoint) -> Image.Image | None:
        """The picture at the end of the source's own branch; None of an editor that has none."""
        editor = start.state.editor
        if not isinstance(editor, ReconstructingEditor):
            return None
        return _picture(decode_latents(self._backbone, editor.reconstruct(start.state.inversion)[-1]))

    def check(self, prompt: str, aims: Sequence[Aim], mask: Mask) -> None:
        """Refuse several aims, an automatic mask, words that no prompt has, and a strength that is no share of steps.

        Raises:
            ValueError: see above.
        """
        editor = self._usual
        if len(aims) > 1:
            raise ValueError(f"{editor.name} takes one target; several at once (--also) are TurboEdit's")
        if isinstance(mask, str):
            raise ValueError(f"--mask {mask} is TurboEdit's; {editor.name} takes a picture whose white may change")
        aim = aims[0]
        if aim.strength is not None and isinstance(editor, ShareEditor) and not 0 <= aim.strength <= 1:
            raise ValueError(f"strength is {aim.strength:g}; expected a share of the steps, --strengths from 0 to 1")
        if not isinstance(editor, GuidedEditor):
            return
        shared = editor.sharing.cross
        if aim.strength is not None:
            shared = 1 - aim.strength
        if (self._weights or self._options.swap) and not shared:
            raise ValueError(
                "--weights and --swap act while cross attention is shared, which it is not: give --strengths below 1, "
                "the share of the steps without, or an editor that shares it, such as prompt_to_prompt"
            )
        assert self._backbone.text is not None, "a pipeline has text encoders"
        unknown = [word for word in self._options.blend if not any(has_word(text, word) for text in (prompt, aim.text))]
        if unknown:
            raise ValueError(f"--blend names {', '.join(unknown)}, which neither {prompt!r} nor {aim.text!r} has")
        for word in self._weights:
            named_tokens(self._backbone.text, aim.text, word)
        if self._options.swap:
            replace_alignment(self._backbone.text, [prompt], [aim.text])

    def edit(self, start: StartingPoint, aims: Sequence[Aim], mask: Mask, threshold: float) -> MethodEdit:
        """The editor's edit; a drawn mask goes to those that take one, and bounds what others change of the photograph.

        Raises:
            ValueError: a mask of another aspect.
        """
        editor, inversion = start.state.editor, start.state.inversion
        prompt, aim = inversion.prompts[0], aims[0]
        places = None if mask is None else drawn_mask(read_mask(mask), [start.cutout]).to(self._backbone.unet.device)
        request = EditRequest(
            (aim.text,),
            mask=places,
            strength=aim.strength,
            seed=self._options.seed,
            control=self._control(prompt, aim.text) if isinstance(editor, GuidedEditor) else None,
        )
        return MethodEdit(_picture(editor.edit(inversion, request)), None, None)

    def _control(self, prompt: str, target: str) -> WordControl:
        """What the user says of words: each is looked for in the prompts that have it."""
        has = [tuple(word for word in self._options.blend if has_word(text, word)) for text in (prompt, target)]
        return WordControl(self._weights, BlendWords(*has), self._options.swap)


def _start(editor: Editor, inversion: InvertedImages, cutout: Cutout) -> StartingPoint:
    return StartingPoint(EditorState(editor, inversion), cutout, inversion.noises)


def _picture(image: Tensor) -> Image.Image:
    """The picture of an image [1, 3, H, W]."""
    return to_output(image, "pil")[0]
