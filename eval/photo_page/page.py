"""The page as gradio's `Blocks`, for a command or a Space to serve."""

import gradio as gr

from eval.photo_page.desk import Desk
from eval.photo_page.layout import lay_out
from eval.photo_page.wiring import Wiring

_FORGOTTEN_SEC = 3600
"""Age at which pictures that the page has shown are removed from the disk."""


def build_page(desk: Desk) -> gr.Blocks:
    """The page on the loaded models of a desk; `eval.photo_page.serving.serve` serves it."""
    paths = [offered.path for offered in desk.offered]
    with gr.Blocks(
        title="Edit a photograph", analytics_enabled=False, delete_cache=(_FORGOTTEN_SEC, _FORGOTTEN_SEC)
    ) as page:
        controls = lay_out(desk.step_counts, paths, desk.writer is not None)
        Wiring(desk, controls).connect()
    return page
