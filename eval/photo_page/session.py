"""What the page remembers of one user: the photograph, its inversion, the edits made of it, and the one on show."""

from dataclasses import dataclass, field, replace
from threading import Event

from PIL import Image

from eval.photo_edits.editing import InvertedPhotograph, PhotoEdit
from eval.photo_edits.photographs import Photograph


class PutAway(Exception):
    """The user has taken another photograph while there was work on this one."""


@dataclass(frozen=True)
class Session:
    """A user's work. It is never changed, but for its end: each action gives another one.

    Args:
        photograph: the photograph.
        before: what the networks see of it, as it is shown.
        lent: whether the photograph is one of the page's examples, which the user does not have as a file.
        inverted: the inversion; None until there is one.
        kept: edits from which the user went on, the first one first; each is made on the one before.
        edit: the edit on show, made on the last of them; None where there is none.
        ended: set when the user has taken another photograph, so that nothing more of this one is shown.
    """

    photograph: Photograph
    before: Image.Image
    lent: bool = False
    inverted: InvertedPhotograph | None = None
    kept: tuple[PhotoEdit, ...] = ()
    edit: PhotoEdit | None = None
    ended: Event = field(default_factory=Event)

    @property
    def source(self) -> InvertedPhotograph | PhotoEdit | None:
        """What the next edit is made on."""
        return self.kept[-1] if self.kept else self.inverted

    @property
    def picture(self) -> Image.Image:
        """The picture on which the next edit is made, at the photograph's size."""
        return self.kept[-1].base if self.kept else self.photograph.picture

    def check(self) -> None:
        """Raises PutAway where the session has ended: what was made in it is another photograph's."""
        if self.ended.is_set():
            raise PutAway

    def with_inversion(self, inverted: InvertedPhotograph) -> "Session":
        """The session with another inversion, of which no edit has been made yet; the same one changes nothing."""
        return self if inverted is self.inverted else replace(self, inverted=inverted, kept=(), edit=None)

    def with_edit(self, edit: PhotoEdit) -> "Session":
        """The session with another edit on show."""
        return replace(self, edit=edit)

    def going_on(self) -> "Session":
        """The session in which the edit on show is what further edits are made on.

        Raises:
            ValueError: no edit is on show.
        """
        if self.edit is None:
            raise ValueError("there is no edit to go on from yet: make one first")
        return replace(self, kept=(*self.kept, self.edit), edit=None)

    def undone(self) -> "Session":
        """The session before the last step: without the edit on show, or else with the one from which it went on."""
        if self.edit is not None:
            return replace(self, edit=None)
        if self.kept:
            return replace(self, kept=self.kept[:-1], edit=self.kept[-1])
        return self
