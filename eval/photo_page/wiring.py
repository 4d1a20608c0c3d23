"""What the page's controls do. A handler takes values and gives those that change, by their controls.

Edits wait in one queue with a worker for each copy of the models. While one runs, of further moves of the same user
the last alone waits, so that they do not pile up.
"""

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import wraps
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from data.jobs.errors import CaptionerError
from eval.photo_edits.editing import InvertedPhotograph, PhotoEdit
from eval.photo_edits.options import Aim
from eval.photo_edits.photographs import Photograph, open_photograph
from eval.photo_page.canvas import canvas_value, painted_on
from eval.photo_page.desk import Desk
from eval.photo_page.layout import Controls
from eval.photo_page.saving import save_edit
from eval.photo_page.session import PutAway, Session
from eval.photo_page.views import noise_maps, overlay, preview
from models.options import MASK_THRESHOLD

Changes = dict[Any, Any]
"""New values or properties by their controls."""


class Wiring:
    """The handlers of one page.

    Args:
        desk: what all users share.
        controls: the page's controls.
    """

    def __init__(self, desk: Desk, controls: Controls) -> None:
        self.desk = desk
        self.controls = controls

    def connect(self) -> None:
        """Tie the handlers to the controls' events."""
        c, quiet = self.controls, {"show_progress": "hidden"}
        working = [*self._connect_edits(), *self._connect_instruction()]
        ended: dict[str, Any] = {"cancels": working, **quiet}
        opened = [self._on(c.photograph.upload, self.take_file, [c.photograph, c.session], preprocess=False, **ended)]
        if c.examples is not None:
            opened.append(self._on(c.examples.click, self.take_example, [c.examples, c.session], **ended))
        ended["cancels"] = [*working, *self._connect_descriptions(opened)]
        self._on(c.photograph.clear, self.put_away, [c.session], **ended)
        self._on(c.go_on.click, self.go_on, [c.session], **ended)
        self._on(c.undo.click, self.undo, [c.session], **ended)
        c.stop.click(self.stop, None, [c.figures], queue=False, **ended)
        self._on(c.save.click, self.save, [c.session], show_progress="minimal", show_progress_on=c.figures)
        self._on(c.add_attribute.click, self.add_attribute, [c.rows], **quiet)

    def _connect_edits(self) -> list[Any]:
        """Tie what asks the models; returns the events."""
        c = self.controls
        models: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": self.desk.num_workers}
        typed: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": c.figures, **models}
        moved: dict[str, Any] = {"show_progress": "hidden", **models}
        source = [c.session, c.description, c.num_steps]
        strengths = [c.strength.input, *(one.strength.input for one in c.attributes)]
        chosen = self._on(c.mask.input, self.choose_mask, [c.session, c.mask, c.strokes], show_progress="hidden")
        painted = self._on(c.painter.input, self.paint, [c.session], trigger_mode="always_last", show_progress="hidden")
        return [
            self._on(c.invert.click, self.invert, source, **typed),
            self._on([c.edit.click, c.target.submit], self.edit, self._wanted(), **typed),
            self._on([*strengths, c.threshold.input], self.move, self._wanted(), trigger_mode="always_last", **moved),
            chosen,
            chosen.then(self._told(self.move), self._wanted(), c.listed(), **moved),
            painted,
            painted.then(self._told(self.move), self._wanted(), c.listed(), **moved),
        ]

    def _connect_descriptions(self, opened: Sequence[Any]) -> list[Any]:
        """Tie what lets the captioner describe, where there is one; returns the events.

        Args:
            opened: the events after which there is a new photograph.
        """
        c = self.controls
        if c.describe is None or c.add_details is None:
            return []
        first, new, texts = self._told(self.describe_first), [c.session, c.description], self._asking()
        return [
            *(one.success(first, new, c.listed(), **texts) for one in opened),
            self._on(c.describe.click, self.describe, [c.session], **texts),
            self._on(c.add_details.click, self.add_details, new, **texts),
        ]

    def _connect_instruction(self) -> list[Any]:
        """Tie the edit by an instruction, where there is a captioner to follow it; returns the events."""
        c = self.controls
        if c.describe is None:
            return []
        wanted = [c.session, c.description, c.instruction]
        written = self._on(c.instruction.submit, self.write_target, wanted, **self._asking())
        return [
            written,
            written.success(
                self._told(self.edit_written),
                self._wanted(),
                c.listed(),
                concurrency_id="models",
                show_progress="minimal",
                show_progress_on=c.figures,
            ),
        ]

    def _asking(self) -> dict[str, Any]:
        """Options of an event that asks the captioner."""
        queue = {"concurrency_id": "captioner", "concurrency_limit": 1}
        return queue | {"show_progress": "minimal", "show_progress_on": self.controls.figures}

    def _on(self, triggers: Any, handler: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> Any:
        """Let a handler answer one or several events; it may change everything."""
        return gr.on(triggers, self._told(handler), list(inputs), self.controls.listed(), **options)

    def _wanted(self) -> list[Any]:
        """The controls that say what is to be edited."""
        c = self.controls
        further = [part for one in c.attributes for part in (one.target, one.strength)]
        return [c.session, c.description, c.num_steps, c.target, c.strength, c.mask, c.threshold, c.strokes, *further]

    def _told(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler as a generator whose errors the page shows, a sentence each; it ends with its photograph."""

        @wraps(handler)
        def steps(*values: Any) -> Iterator[Changes]:
            yield {self.controls.figures: gr.update()}  # without a value gradio empties them all
            try:
                found = handler(*values)
                if isinstance(found, Iterator):
                    yield from found
                else:
                    yield found
            except PutAway:
                return
            except (ValueError, OSError, CaptionerError) as error:
                raise gr.Error(escape(str(error)), print_exception=False) from error

        return steps

    # The photograph and its description

    def take_file(self, file: dict[str, Any], session: Session | None) -> Changes:
        """Begin with an uploaded file."""
        name = Path(file["orig_name"] or file["path"]).name
        photograph = open_photograph(file["path"], name)
        return self.put_away(session) | self._begin(photograph, "", lent=False)

    def take_example(self, number: int, session: Session | None) -> Changes:
        """Begin with one of the pictures that the page offers."""
        offered = self.desk.offered[number]
        photograph = open_photograph(offered.path, offered.path.name)
        return self.put_away(session) | self._begin(photograph, offered.description, lent=True)

    def put_away(self, session: Session | None) -> Changes:
        """Begin anew, without a photograph."""
        if session is not None:
            session.ended.set()
        c = self.controls
        return self._empty() | {c.session: None, c.description: gr.update(value="", interactive=True)}

    def describe_first(self, session: Session, description: str) -> Iterator[Changes]:
        """Let the captioner describe a photograph that came without a description."""
        if not description.strip():
            yield from self.describe(session)

    def describe(self, session: Session | None) -> Iterator[Changes]:
        """Let the captioner describe the photograph."""
        c, photograph = self.controls, _there(session).photograph
        yield {c.figures: "The captioner looks at the photograph …"}
        assert self.desk.writer is not None, "without a captioner there is no such button"
        written = self.desk.writer.caption(self.desk.seen(photograph))
        _there(session).check()
        yield {c.description: written.text, c.figures: "", c.notes: _notes(written.notes)}

    def add_details(self, session: Session | None, description: str) -> Iterator[Changes]:
        """Let the captioner make a detailed description of a few words; encoders have learned such."""
        c = self.controls
        _there(session)
        if not description.strip():
            raise ValueError("the description is empty: write a few words of which the captioner can say more")
        yield {c.figures: "The captioner adds details …"}
        assert self.desk.writer is not None, "without a captioner there is no such button"
        try:
            written = self.desk.writer.expand(description)
        except ValueError as error:  # it names options of a command
            raise ValueError("the captioner did not say more: write the details yourself") from error
        _there(session).check()
        yield {c.description: written.text, c.figures: "", c.notes: _notes(written.notes)}

    def write_target(self, session: Session | None, description: str, instruction: str) -> Iterator[Changes]:
        """Let the captioner change the description by an instruction."""
        c = self.controls
        _there(session)
        if not description.strip():
            raise ValueError("the description is empty: say what the photograph shows, or let the captioner say it")
        yield {c.figures: "The captioner writes the target …"}
        assert self.desk.writer is not None, "without a captioner nobody can type an instruction"
        written = self.desk.writer.target(description, instruction)
        _there(session).check()
        yield {c.target: written.text, c.figures: "", c.notes: _notes(written.notes)}

    # Inversion and edits

    def invert(self, session: Session | None, description: str, num_steps: int | None) -> Iterator[Changes]:
        """Invert the photograph, and show its reconstruction and noises."""
        found = yield from self._inverted(_there(session), description, num_steps)
        inverted = found.inverted
        assert inverted is not None, "it was inverted"
        c = self.controls
        after = inverted.reconstruction
        shown = None if after is None else (found.before, preview(after))
        yield self._curious(inverted) | {
            c.session: found,
            c.result: shown,
            c.figures: f"Inverted, and reconstructed on the right side: {_cost(inverted)}",
            c.notes: _notes(()),
            c.target: gr.update() if found.edit else inverted.prompt,
        }

    def edit(self, session: Session | None, description: str, num_steps: int | None, *wishes: Any) -> Iterator[Changes]:
        """Edit the photograph, or the last kept edit; it is inverted where it has not been."""
        c = self.controls
        target, strength, mask, threshold, strokes, *further = wishes
        found = _there(session)
        aims = _aims(target, strength, further)
        if mask == "painted" and strokes is None:
            raise ValueError("nothing is painted yet: paint over what may change, or choose another mask")
        if not found.kept:
            found = yield from self._inverted(found, description, num_steps)
        source = found.source
        assert source is not None, "the photograph was inverted"
        where = {"none": None, "auto": "auto", "painted": strokes}[mask]
        with self.desk.editor() as editor:
            edit = editor.edit(source, aims, where, threshold)
        found.check()
        found = found.with_edit(edit)
        yield {c.session: found, **self._shown(found)}

    def edit_written(self, *values: Any) -> Iterator[Changes]:
        """Edit by the target that the captioner wrote; nothing where a new photograph took it away."""
        if values[3]:
            yield from self.edit(*values)

    def move(self, session: Session | None, description: str, num_steps: int | None, *wishes: Any) -> Iterator[Changes]:
        """Make the edit on show again with other strengths or another mask; nothing where there is none."""
        mask, strokes = wishes[2], wishes[4]
        if session is not None and session.edit is not None and not (mask == "painted" and strokes is None):
            yield from self.edit(session, description, num_steps, *wishes)

    def choose_mask(self, session: Session | None, mask: str, strokes: Image.Image | None) -> Changes:
        """Show the controls of a kind of mask."""
        c = self.controls
        changes: Changes = {
            c.automatic: gr.update(visible=mask == "auto"),
            c.painted: gr.update(visible=mask == "painted"),
        }
        if mask == "painted" and session is not None and strokes is None:
            changes[c.painter] = canvas_value(preview(session.picture), None)
        return changes

    def paint(self, session: Session | None, event: gr.EventData) -> Changes:
        """Take what was painted."""
        return {self.controls.strokes: painted_on(event.layer, preview(_there(session).picture))}

    # Edits on edits

    def go_on(self, session: Session | None) -> Changes:
        """Make further edits on the one that is shown."""
        c, found = self.controls, _there(session).going_on()
        text = found.kept[-1].text
        return {
            c.session: found,
            c.description: gr.update(value=text, interactive=False),
            c.target: text,
            c.strength: 1.0,
            c.mask: "none",
            c.automatic: gr.update(visible=False),
            c.painted: gr.update(visible=False),
            c.strokes: None,
            c.painter: canvas_value(preview(found.picture), None),
            c.figures: f"Edit {len(found.kept)} is kept: the next one is made on it.",
            c.notes: _notes(()),
            **self._attributes(()),
            **self._buttons(found),
        }

    def undo(self, session: Session | None) -> Changes:
        """Take the last step back: the edit on show, or that an edit was kept."""
        c, found = self.controls, _there(session).undone()
        changes = {c.session: found, **self._shown(found)}
        if found.edit is not None and not found.kept:
            changes[c.description] = gr.update(value=found.edit.source.prompt, interactive=True)
        elif found.edit is not None:
            changes[c.description] = gr.update(value=found.kept[-1].text, interactive=False)
        if found.edit is not None:
            changes |= self._wishes(found, found.edit)
        return changes

    def stop(self) -> str:
        """Say that waiting work was dropped; an evaluation that runs comes to its end unseen."""
        return "Stopped."

    def save(self, session: Session | None) -> Changes:
        """Write the edit at the photograph's size, with what makes it again."""
        c, found = self.controls, _there(session)
        if found.edit is None:
            raise ValueError("there is no edit to save yet: make one first")
        folder = Path(c.files.GRADIO_CACHE) / secrets.token_hex(16)
        folder.mkdir(parents=True)
        files = save_edit(found.edit, folder, photograph=found.lent)
        return {c.files: gr.update(value=[str(path) for path in files], visible=True)}

    def add_attribute(self, rows: int) -> Changes:
        """Show one more row."""
        c = self.controls
        rows = min(rows + 1, len(c.attributes))
        return {c.rows: rows} | {one.row: gr.update(visible=number < rows) for number, one in enumerate(c.attributes)}

    # What several of them change

    def _begin(self, photograph: Photograph, description: str, lent: bool) -> Changes:
        c = self.controls
        session = Session(photograph, preview(self.desk.seen(photograph)), lent)
        size = f"{photograph.picture.width} x {photograph.picture.height} pixels"
        return {
            c.session: session,
            c.photograph: preview(photograph.picture),
            c.description: gr.update(value=description, interactive=True),
            c.painter: canvas_value(preview(session.picture), None),
            c.result: (session.before, session.before),
            c.figures: f"{photograph.name}, {size}",
        }

    def _empty(self) -> Changes:
        """The page without a photograph, but for the photograph's own controls."""
        c = self.controls
        return {
            c.result: None,
            c.figures: "",
            c.notes: _notes(()),
            c.instruction: "",
            c.target: "",
            c.strength: 1.0,
            c.mask: "none",
            c.automatic: gr.update(visible=False),
            c.threshold: MASK_THRESHOLD,
            c.places: None,
            c.painted: gr.update(visible=False),
            c.painter: None,
            c.strokes: None,
            c.files: gr.update(value=None, visible=False),
            c.reconstruction: None,
            c.noises: "",
            **self._attributes(()),
            **self._buttons(None),
        }

    def _inverted(self, session: Session, description: str, num_steps: int | None) -> Generator[Changes, None, Session]:
        """The session with the photograph's inversion, which is made where it is not there yet."""
        c, known, description = self.controls, session.inverted, description.strip()
        if known is not None and (known.prompt, known.steps) == (description, num_steps):
            return session
        if not description:
            raise ValueError("the description is empty: say what the photograph shows")
        yield {c.figures: "Inverting the photograph …"}
        with self.desk.editor() as editor:
            inverted = editor.invert(session.photograph, description, num_steps)
        session.check()
        session = session.with_inversion(inverted)
        yield {c.session: session, **self._curious(inverted), **self._buttons(session)}
        return session

    def _curious(self, inverted: InvertedPhotograph) -> Changes:
        c, reconstruction = self.controls, inverted.reconstruction
        return {
            c.reconstruction: None if reconstruction is None else preview(reconstruction),
            c.noises: noise_maps(inverted.noises),
        }

    def _shown(self, session: Session) -> Changes:
        """The edit on show, or what it would be made on."""
        c, edit = self.controls, session.edit
        on_show = edit or (session.kept[-1] if session.kept else None)
        changes: Changes = {
            c.result: (session.before, session.before if on_show is None else preview(on_show.seen)),
            c.figures: "" if edit is None else _figures(edit),
            c.notes: _notes(() if edit is None else (*edit.notes, *_spilled(edit))),
            c.files: gr.update(value=None, visible=False),
            **self._buttons(session),
        }
        if edit is not None and edit.made.weights is not None and edit.drawn is None:
            changes[c.places] = overlay(session.before, edit.made.weights)
        return changes

    def _buttons(self, session: Session | None) -> Changes:
        """Which steps are possible."""
        c = self.controls
        edit = None if session is None else session.edit
        first = gr.update(interactive=session is None or not session.kept)  # the photograph itself is inverted
        return {
            c.invert: first,
            c.num_steps: first,
            **{one: first for one in (c.describe, c.add_details) if one is not None},
            c.go_on: gr.update(interactive=edit is not None and edit.start is not None),
            c.undo: gr.update(interactive=edit is not None or bool(session and session.kept)),
            c.save: gr.update(interactive=edit is not None),
        }

    def _wishes(self, session: Session, edit: PhotoEdit) -> Changes:
        """The controls as they were for an edit."""
        c, first = self.controls, edit.aims[0]
        mask = "painted" if edit.drawn is not None else "none" if edit.mask is None else "auto"
        return {
            c.target: first.text,
            c.strength: 1.0 if first.strength is None else first.strength,
            c.mask: mask,
            c.automatic: gr.update(visible=mask == "auto"),
            c.threshold: edit.threshold,
            c.painted: gr.update(visible=mask == "painted"),
            c.strokes: edit.drawn,
            c.painter: canvas_value(preview(session.picture), edit.drawn),
            **self._attributes(edit.aims[1:]),
        }

    def _attributes(self, aims: Sequence[Aim]) -> Changes:
        """The rows of further targets; one empty row where there are none."""
        c = self.controls
        shown = max(1, len(aims))
        changes: Changes = {c.rows: shown}
        for number, (row, aim) in enumerate(zip_longest(c.attributes, aims)):
            changes[row.row] = gr.update(visible=number < shown)
            changes[row.target] = "" if aim is None else aim.text
            changes[row.strength] = 1.0 if aim is None or aim.strength is None else aim.strength
        return changes


def _there(session: Session | None) -> Session:
    """The session. Raises ValueError where there is no photograph yet."""
    if session is None:
        raise ValueError("there is no photograph yet: drop one, or take an example")
    return session


def _aims(target: str, strength: float, further: Sequence[Any]) -> list[Aim]:
    """What an edit goes towards: the target, and further ones from pairs of a text and a strength."""
    pairs = [(target, strength), *zip(further[::2], further[1::2], strict=True)]
    aims = [Aim(text.strip(), value) for text, value in pairs if text.strip()]
    if not aims:
        raise ValueError("the target is empty: say what the photograph should show")
    return aims


def _spilled(edit: PhotoEdit) -> tuple[str, ...]:
    """A note where an earlier edit had a mask and this one has none: its noises know nothing of the mask."""
    if edit.mask is not None or all(earlier.mask is None for earlier in edit.on.before):
        return ()
    return ("an earlier edit had a mask: without one the change of then shows everywhere",)


def _notes(notes: Sequence[str]) -> Any:
    """What a user should know, a line each; nothing is shown where there is nothing."""
    return gr.update(value="\n".join(f"- {escape(note)}" for note in notes), visible=bool(notes))


def _figures(edit: PhotoEdit) -> str:
    return f"Edited: {_cost(edit)}. Inverted: {_cost(edit.source)}"


def _cost(made: PhotoEdit | InvertedPhotograph) -> str:
    return f"{made.cost.seconds:.2f} s, {made.cost.nfe:g} evaluations (NFE)"
