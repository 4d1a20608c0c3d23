"""Loading the method that options name, with its models."""

from collections.abc import Callable
from dataclasses import fields

import torch

from data.jobs.device import choose_device
from eval.editors.builders import style
from eval.editors.catalogue import ON_MANY_STEPS, Known
from eval.editors.editor import Editor
from eval.editors.models import ManyStepModel, Needs
from eval.harness.exports import ExportedMapper, export_folder, load_encoder, load_mapper, names_pipeline
from eval.harness.precision import guided_dtype
from eval.photo_edits.classic import ClassicPhotos
from eval.photo_edits.editing import PhotoEditor
from eval.photo_edits.options import FROM_NOISE, MethodOptions
from eval.photo_edits.turboedit import TurboEditPhotos
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim

_NUM_STEPS, _GUIDANCE = 50, 7.5
"""What is usual for Stable Diffusion."""

_OTHER_NAMES = {FROM_NOISE: "ddim_p2p"}

_OF_EXPORT = "stylediffusion_amortised"
"""The editor that an export of StyleDiffusion is."""

_NOT_OF_TURBOEDIT = {
    "variant": "the files of a --backbone",
    "clip": "--editor stylediffusion",
    "guidance": "--editor and exports of StyleDiffusion",
    "null_text": "--editor null_text",
    "imagic": "--editor imagic",
    "fit": "--editor stylediffusion",
    "weights": "editors with Prompt-to-Prompt",
    "blend": "editors with Prompt-to-Prompt",
    "swap": "editors with Prompt-to-Prompt",
    "seed": "what an --editor draws",
}
"""Options that do nothing for an export of TurboEdit, and what they are for."""

_KEPT_FITS = 2
"""Inversions of classic editors that are kept; some hold weights of a UNet."""


def load_photo_editor(options: MethodOptions) -> PhotoEditor:
    """Load the models of a method.

    Raises:
        ValueError: what is named is no such export, editor or backbone, it does not take an option that is given, or
            there is no such device.
        OSError: it cannot be had from the hub.
    """
    device = choose_device(options.device)
    if options.editor is None and names_pipeline(str(options.encoder), "TurboEditPipeline"):
        _check_turboedit(options)
        pipeline = load_encoder(str(options.encoder), device, options.dtype)
        return PhotoEditor(TurboEditPhotos(pipeline, options.outside), options)
    if options.outside != MethodOptions.outside:
        raise ValueError(f"--outside is {options.outside}, which is for exports of TurboEdit: leave it out")
    name = options.editor or _OF_EXPORT
    known = _known(_OTHER_NAMES.get(name, name))
    if known.needs & Needs.MAPPER and options.encoder is None:
        raise ValueError(f"--editor {name} needs --encoder, an export of a train.stylediffusion run")
    exported = None if options.encoder is None else load_mapper(options.encoder, device)
    place = options.backbone or str(export_folder(str(options.encoder)))
    dtype = guided_dtype(options.dtype, place, device)
    backbone = Backbone.load(place, device=device, dtype=dtype, variant=options.variant)
    build = _builder(known, backbone, exported, _tokens(known, options, exported, device), options)
    return PhotoEditor(ClassicPhotos(backbone, build, options), options, _KEPT_FITS)


def _check_turboedit(options: MethodOptions) -> None:
    """Refuse options that an export of TurboEdit does not take.

    Raises:
        ValueError: one has another value than its default.
    """
    usual = MethodOptions(encoder=options.encoder)
    for name in (one.name for one in fields(MethodOptions) if one.name in _NOT_OF_TURBOEDIT):
        if getattr(options, name) != getattr(usual, name):
            raise ValueError(
                f"--{name} is for {_NOT_OF_TURBOEDIT[name]}; {options.encoder} is an export of TurboEdit, for which it "
                "does nothing: leave it out"
            )


def _known(name: str) -> Known:
    """A line of the catalogue. Raises ValueError for a name that it does not have."""
    methods = {known.name: known for known in ON_MANY_STEPS if not known.reference}
    if name not in methods:
        names = ", ".join((*_OTHER_NAMES, *methods))
        raise ValueError(f"--editor is {name}, which is unknown; expected one of {names}")
    return methods[name]


def _tokens(
    known: Known, options: MethodOptions, exported: ExportedMapper | None, device: torch.device
) -> ImageTokens | None:
    """CLIP's tokens, where the editor needs them."""
    if not known.needs & (Needs.TOKENS | Needs.MAPPER):
        return None
    return ImageTokens.load(options.clip, device) if exported is None else exported.tokens


def _builder(
    known: Known,
    backbone: Backbone,
    exported: ExportedMapper | None,
    tokens: ImageTokens | None,
    options: MethodOptions,
) -> Callable[[int | None], Editor]:
    """Return what makes the editor with a number of steps."""
    usual, offset, guidance = _NUM_STEPS, 1, _GUIDANCE
    if exported is not None:
        usual, offset, guidance = exported.num_steps, exported.steps_offset, exported.guidance
    guidance = guidance if options.guidance is None else options.guidance

    def build(steps: int | None) -> Editor:
        if exported is not None and known.needs & Needs.MAPPER and steps not in (None, usual):
            raise ValueError(f"--steps is {steps}; the export's network was trained for {usual}")
        model = ManyStepModel(
            backbone,
            Ddim(backbone.schedule, usual if steps is None else steps, offset),
            guidance,
            options.null_text,
            imagic=options.imagic,
            tokens=tokens,
            mapper=None if exported is None else exported.mapper,
            into="values" if exported is None else exported.into,
        )
        make = style(options.fit) if known.name == "stylediffusion" else known.build
        assert make is not None, "every method of the catalogue can be built"
        return make(model, known.name)

    return build
