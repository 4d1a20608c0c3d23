"""Serving the page: its queue, its limits, and that nothing is asked of the outside."""

import logging

import gradio as gr

from eval.photo_page.theme import STYLE, theme

logger = logging.getLogger(__name__)

MOST_MB = 50
"""Size of a file that is taken."""

_MOST_WAITING = 64
"""Requests that may wait; the next one is told to come again."""


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, browser: bool = False) -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: address to listen at.
        port: port to listen at; by default the first free one from 7860 on.
        browser: open it in this machine's browser.

    Raises:
        ValueError: the port cannot be had.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is there
    page.queue(max_size=_MOST_WAITING, api_open=False)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            show_error=True,
            max_file_size=f"{MOST_MB}mb",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            theme=theme(),
            css=STYLE,
            prevent_thread_lock=True,
        )
    except OSError as error:
        if port is None:
            raise
        raise ValueError(f"--port {port} cannot be had at {host}; give another one, or leave it out") from error
    logger.info("the page is at %s (Ctrl-C ends it)", page.local_url)
    page.block_thread()
