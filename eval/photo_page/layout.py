"""Where the page's controls stand and how they look; what they do is said in `wiring`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from eval.photo_page.canvas import paint_canvas
from models.options import MASK_THRESHOLD

LEAST_STRENGTH, MOST_STRENGTH = -0.5, 1.7
MAX_ATTRIBUTES = 4

_HEAD = """
# Edit a photograph
Drop a photograph, say what it shows, say what it should show. It is inverted once; each edit then takes a moment.
"""


@dataclass(frozen=True)
class Attribute:
    """A further target with a strength of its own, in a row that is hidden until it is asked for."""

    row: gr.Row
    target: gr.Textbox
    strength: gr.Slider


@dataclass(frozen=True)
class Controls:
    """Everything on the page that is read or changed."""

    session: gr.State
    strokes: gr.State
    rows: gr.State
    photograph: gr.Image
    examples: gr.Dataset | None
    description: gr.Textbox
    describe: gr.Button | None
    add_details: gr.Button | None
    num_steps: gr.Radio
    invert: gr.Button
    result: gr.ImageSlider
    figures: gr.Markdown
    notes: gr.Markdown
    instruction: gr.Textbox
    target: gr.Textbox
    strength: gr.Slider
    attributes: tuple[Attribute, ...]
    add_attribute: gr.Button
    mask: gr.Radio
    automatic: gr.Column
    threshold: gr.Slider
    places: gr.Image
    painted: gr.Column
    painter: gr.HTML
    edit: gr.Button
    go_on: gr.Button
    undo: gr.Button
    stop: gr.Button
    save: gr.Button
    files: gr.File
    reconstruction: gr.Image
    noises: gr.HTML

    def listed(self) -> list[Any]:
        """All that handlers may change."""
        found = [getattr(self, one.name) for one in fields(self) if one.name not in ("examples", "attributes")]
        found += [part for one in self.attributes for part in (one.row, one.target, one.strength)]
        return [one for one in found if one is not None]


def lay_out(step_counts: Sequence[int], examples: Sequence[Path], captioner: bool) -> Controls:
    """Put the controls into the `gr.Blocks` that is open.

    Args:
        step_counts: numbers of steps in which the export can invert, ascending.
        examples: files of pictures to begin with.
        captioner: whether there is one, to write descriptions and to follow instructions.
    """
    gr.Markdown(_HEAD, elem_id="head")
    states = {"session": gr.State(), "strokes": gr.State(), "rows": gr.State(1)}
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            first = _source(examples, captioner)
        with gr.Column(scale=3, min_width=320):
            second = _result()
    with gr.Accordion("Steps, reconstruction and noises, for the curious", open=False, elem_id="curious"):
        num_steps = gr.Radio(
            [(str(count), count) for count in step_counts],
            value=step_counts[-1],
            label="Steps",
            info="Fewer are faster and keep less.",
            visible=len(step_counts) > 1,
            elem_id="steps",
        )
        gr.Markdown(
            "What the generator makes of the inverted noises under the photograph's own description, and those noises "
            "by timestep: three of four channels as red, green and blue. White noise has a deviation of 1."
        )
        reconstruction = gr.Image(
            label="Reconstruction", format="jpeg", interactive=False, buttons=["fullscreen"], height=260
        )
        noises = gr.HTML(elem_id="noises")
    return Controls(**states, num_steps=num_steps, reconstruction=reconstruction, noises=noises, **first, **second)


def _source(examples: Sequence[Path], captioner: bool) -> dict[str, Any]:
    """The photograph, its description, and what it should show."""
    photograph = gr.Image(
        label="Photograph",
        type="filepath",
        image_mode=None,
        format="jpeg",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        height=270,
        placeholder="Drop a photograph of any shape, paste one, or click to choose a file",
        elem_id="photograph",
    )
    shown = None
    if examples:
        shown = gr.Dataset(
            label="Or take an example",
            components=[gr.Image(visible=False, type="filepath", render=False)],
            samples=[[str(path)] for path in examples],
            type="index",
            samples_per_page=8,
            elem_id="examples",
        )
    described_by = "The captioner writes it; change what is wrong." if captioner else "No captioner: write it yourself."
    description = gr.Textbox(
        label="What the photograph shows",
        info=f"{described_by} All that is named here can be changed, all else is kept.",
        placeholder="a red fox asleep on a green couch, a lamp behind it",
        lines=3,
        max_lines=8,
        elem_id="description",
    )
    with gr.Row():
        describe = gr.Button("Describe anew", size="md", min_width=120) if captioner else None
        add_details = gr.Button("Add details", size="md", min_width=120, elem_id="add_details") if captioner else None
        invert = gr.Button("Invert", variant="primary", size="md", min_width=120, elem_id="invert")
    instruction = gr.Textbox(
        label="Instruction",
        placeholder="make the fox black" if captioner else "needs a captioner: start the page with --captioner",
        interactive=captioner,
        submit_btn="Apply" if captioner else False,
        elem_id="instruction",
    )
    target = gr.Textbox(
        label="What it should show",
        info="The target: the description with changed words.",
        placeholder="a black fox asleep on a green couch, a lamp behind it",
        lines=2,
        max_lines=8,
        elem_id="target",
    )
    with gr.Row():
        stop = gr.Button("Stop", size="md", min_width=120, elem_id="stop")
        edit = gr.Button("Edit", variant="primary", size="md", min_width=120, elem_id="edit")
    return {
        "photograph": photograph,
        "examples": shown,
        "description": description,
        "describe": describe,
        "add_details": add_details,
        "invert": invert,
        "instruction": instruction,
        "target": target,
        "stop": stop,
        "edit": edit,
    }


def _result() -> dict[str, Any]:
    """The edit, how far it goes and where."""
    result = gr.ImageSlider(
        label="Before and after",
        format="jpeg",
        interactive=False,
        max_height=440,
        buttons=["fullscreen"],
        elem_id="result",
    )
    figures = gr.Markdown("", elem_id="figures")
    notes = gr.Markdown("", visible=False, elem_id="notes")
    strength = _strength_slider("Strength", "strength", "0 is the description, 1 the target; beyond is exaggerated.")
    with gr.Accordion("More changes, each with a strength of its own", open=False, elem_id="attributes"):
        attributes = tuple(_attribute(number) for number in range(MAX_ATTRIBUTES))
        add_attribute = gr.Button("Add a change", size="sm", elem_id="add_attribute")
    mask = gr.Radio(
        [("Everywhere", "none"), ("Automatic", "auto"), ("Painted", "painted")],
        value="none",
        label="Where it may change",
        elem_id="mask",
    )
    with gr.Column(visible=False) as automatic:
        threshold = gr.Slider(
            0.05,
            0.95,
            value=MASK_THRESHOLD,
            step=0.05,
            label="Threshold",
            info="Higher leaves less of the picture to change.",
            buttons=[],
            elem_id="threshold",
        )
        places = gr.Image(
            label="Red may change", format="jpeg", interactive=False, height=260, buttons=[], elem_id="places"
        )
    with gr.Column(visible=False) as painted:
        painter = paint_canvas("painter")
    with gr.Row():
        go_on = gr.Button("Go on from this", size="md", min_width=130, interactive=False, elem_id="go_on")
        undo = gr.Button("Undo", size="md", min_width=90, interactive=False, elem_id="undo")
        save = gr.Button("Save at full size", size="md", min_width=130, interactive=False, elem_id="save")
    files = gr.File(label="Saved", file_count="multiple", interactive=False, visible=False, elem_id="files")
    return {
        "result": result,
        "figures": figures,
        "notes": notes,
        "strength": strength,
        "attributes": attributes,
        "add_attribute": add_attribute,
        "mask": mask,
        "automatic": automatic,
        "threshold": threshold,
        "places": places,
        "painted": painted,
        "painter": painter,
        "go_on": go_on,
        "undo": undo,
        "save": save,
        "files": files,
    }


def _attribute(number: int) -> Attribute:
    with gr.Row(visible=number == 0) as row:
        target = gr.Textbox(
            label=f"Target {number + 2}",
            placeholder="the description with another change",
            scale=3,
            min_width=200,
            elem_id=f"attribute_{number}",
        )
        strength = _strength_slider("Strength", f"attribute_strength_{number}", None)
    return Attribute(row, target, strength)


def _strength_slider(label: str, name: str, info: str | None) -> gr.Slider:
    return gr.Slider(
        LEAST_STRENGTH,
        MOST_STRENGTH,
        value=1.0,
        step=0.05,
        label=label,
        info=info,
        buttons=[],
        scale=2,
        min_width=200,
        elem_id=name,
    )
