"""The page's look: the system's own fonts, so that nothing is asked of the outside, and a few rules of spacing."""

import gradio as gr

_FONTS = ("Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONOSPACE = ("Menlo", "Consolas", "monospace")

STYLE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#head h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
#head p { color: var(--body-text-color-subdued); margin: 0; }
#figures { min-height: 1.5em; }
#figures p { margin: 0; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.noises { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; }
.noises figure { margin: 0; }
.noises img { width: 100%; image-rendering: pixelated; border-radius: 6px; }
.noises figcaption { color: var(--body-text-color-subdued); font-size: .85rem; }
#figures .error, #figures .clear-status { display: none; } /* errors are told at the top */
#instruction textarea { border: 1px solid var(--input-border-color); border-radius: var(--input-radius); }
#instruction textarea { margin-right: 8px; }
#instruction .submit-button { align-self: center; }
#attributes .label-wrap, #curious .label-wrap { text-align: left; }
#files .stem { white-space: normal; overflow-wrap: anywhere; } /* else names that differ at their end look alike */
#files td { padding-inline: .4rem; }
#files .download { width: 5.5rem; min-width: 0; }
#notes li { margin: 0 0 .25rem; }
#notes { border-left: 3px solid var(--color-accent); padding-left: .75rem; }
@media (max-width: 600px) {
  .gradio-container { padding: 8px !important; }
  #head h1 { font-size: 1.25rem; }
}
"""


def theme() -> gr.themes.Base:
    """A plain light and dark theme."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        font=_FONTS,
        font_mono=_MONOSPACE,
    )
