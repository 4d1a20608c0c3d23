"""Loading the method that options name, with its models."""

from eval.harness.exports import load_encoder
from eval.harness.options import folder_or_hub_id
from eval.photo_edits.editing import PhotoEditor
from eval.photo_edits.options import MethodOptions
from eval.photo_edits.turboedit import TurboEditPhotos


def load_photo_editor(options: MethodOptions) -> PhotoEditor:
    """Load the models of a method.

    Raises:
        ValueError: what is named is no such export or backbone, or there is no such device.
        OSError: it cannot be had from the hub.
    """
    from data.jobs.device import choose_device

    device = choose_device(options.device)
    assert options.encoder is not None
    folder_or_hub_id(options.encoder, "--encoder")
    return PhotoEditor(TurboEditPhotos(load_encoder(options.encoder, device, options.dtype)), options)
