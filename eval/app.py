"""A page in the browser on which photographs are edited: drop one, say what it should show, move the strength, save.

python -m eval.app --encoder EXPORT [--captioner MODEL|URL]

The page asks nothing of the outside. Each user has a state of his own; all share the models, of which each GPU holds a
copy and works on one request at a time.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id

logger = logging.getLogger(__name__)


def open_app(
    encoder: str,
    captioner: str | None = None,
    captioner_model: str | None = None,
    examples: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        encoder: folder or hub id of an export of TurboEdit; one of StyleDiffusion edits by eval.edit
        captioner: folder or hub id of an image-and-text model, or the base URL of an OpenAI-compatible server, that
            writes descriptions and follows instructions; without it people write the descriptions themselves
        captioner_model: name under which the server has its model; by default the only one that it names
        examples: folder of pictures to begin with; by default rendered scenes where the encoder's pictures have their
            size
        host: address at which the page is served; 0.0.0.0 lets other machines open it
        port: port of the page; by default the first free one from 7860 on
        browser: open the page in this machine's browser
        dtype: type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: auto (all GPUs, or else the CPU), cpu, cuda:0 ...
    """
    folder_or_hub_id(encoder, "--encoder")
    if examples is not None:
        existing(examples, "--examples", "folder of pictures")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which reports its imports

    from eval.photo_page.desk import load_desk
    from eval.photo_page.page import build_page
    from eval.photo_page.serving import serve

    desk = load_desk(encoder, captioner, captioner_model, examples, dtype, device)
    serve(build_page(desk), host, port, browser)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.app", open_app, argv)


if __name__ == "__main__":
    main()
