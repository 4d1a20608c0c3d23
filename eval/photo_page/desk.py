"""What all users of the page share: the loaded models, one copy on each GPU, the captioner and the examples."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from PIL import Image

from data.pictures.files import list_images
from data.world.captions import long_caption
from data.world.render import SIDE, render
from data.world.splits import sample_scene
from eval.harness.exports import names_pipeline
from eval.harness.options import Dtype
from eval.photo_edits.editing import PhotoEditor
from eval.photo_edits.loading import load_photo_editor
from eval.photo_edits.options import MethodOptions
from eval.photo_edits.photographs import Photograph, open_photograph
from eval.photo_edits.turboedit import TurboEditPhotos
from eval.photo_edits.writer import Writer, captioner_config

_NUM_SCENES = 4


@dataclass(frozen=True)
class OfferedPicture:
    """A picture to begin with, and its description; "" where it has none."""

    path: Path
    description: str


class Desk:
    """The shared models; a request takes an editor for itself and gives it back.

    Args:
        editors: the same method loaded once for each device.
        writer: the captioner, or None.
        offered: pictures to begin with.
    """

    def __init__(
        self, editors: Sequence[PhotoEditor], writer: Writer | None = None, offered: Sequence[OfferedPicture] = ()
    ) -> None:
        self.num_workers = len(editors)
        self.writer = writer
        self.offered = tuple(offered)
        self._first = editors[0]
        self._free: SimpleQueue[PhotoEditor] = SimpleQueue()
        for editor in editors:
            self._free.put(editor)

    @contextmanager
    def editor(self) -> Iterator[PhotoEditor]:
        """An editor that nobody else has in the block."""
        editor = self._free.get()
        try:
            yield editor
        finally:
            self._free.put(editor)

    def seen(self, photograph: Photograph) -> Image.Image:
        """What the networks see of a photograph; no network is asked."""
        return self._first.seen(photograph)

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Numbers of steps from which users choose, ascending."""
        method = self._first.method
        assert isinstance(method, TurboEditPhotos), "other exports are refused"
        return method.pipeline.step_counts


def load_desk(
    encoder: str,
    captioner: str | None = None,
    captioner_model: str | None = None,
    examples: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Desk:
    """Load an export on each device, and the captioner.

    Args:
        encoder: folder or hub id of an export.
        captioner: folder or hub id of an image-and-text model, or the URL of a server; None for none.
        captioner_model: name under which the server has its model.
        examples: folder of pictures to begin with; by default scenes for an export that makes pictures of their size.
        dtype: type of UNets and text encoders.
        device: a device by name, or auto for all GPUs or else the CPU.

    Raises:
        ValueError: something that is named is not there, or the export is not TurboEdit's.
        CaptionerError: the captioner cannot be loaded.
    """
    if not names_pipeline(encoder, "TurboEditPipeline"):
        raise ValueError(
            f"--encoder {encoder} is an export of another method, and the page edits with those of TurboEdit alone; "
            f"one of StyleDiffusion edits by python -m eval.edit --encoder {encoder}"
        )
    devices = _devices(device)
    writer_engine = None if captioner is None else captioner_config(captioner, captioner_model, devices[0])
    place = str(Path(encoder).absolute()) if Path(encoder).is_dir() else encoder  # saved settings are read elsewhere
    editors = [load_photo_editor(MethodOptions(encoder=place, dtype=dtype, device=name)) for name in devices]
    writer = None
    if writer_engine is not None:
        writer = Writer(writer_engine.load(), editors[0].limits, advice="say yourself what it shows")
    if examples is not None:
        offered = _pictures(examples)
    else:
        offered = _scenes() if editors[0].method.backbone.image_size == SIDE else ()
    return Desk(editors, writer, offered)


def _devices(device: str) -> tuple[str, ...]:
    """Names of the devices that each get a copy of the models."""
    if device == "auto" and torch.cuda.device_count() > 1:
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    return (device,)


def _pictures(folder: Path) -> tuple[OfferedPicture, ...]:
    """The pictures of a folder that can be read, with their captions."""
    files = list_images(folder)
    found = []
    for number, name in enumerate(files.names):
        caption = files.read(number).caption or ""
        open_photograph(folder / name)  # a damaged one is told at the start
        found.append(OfferedPicture(folder / name, " ".join(caption.split())))
    return tuple(found)


def _scenes() -> tuple[OfferedPicture, ...]:
    """Rendered scenes of the test split, as files of this process."""
    folder = Path(tempfile.mkdtemp(prefix="scenes_"))
    found = []
    for index in range(_NUM_SCENES):
        scene = sample_scene("test", 0, index)
        path = folder / f"scene_{index}.png"
        Image.fromarray(render(scene)).save(path)
        found.append(OfferedPicture(path, long_caption(scene)))
    return tuple(found)
