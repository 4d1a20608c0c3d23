"""DDIM inversion in many steps: up without guidance, down with it; a swap of words, or Prompt-to-Prompt on top."""

from eval.editors.guided import EncodedSource, GuidedEditor
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots
from models.prompt_to_prompt import NOTHING, Sharing, Trajectory


class GuidedDdim(GuidedEditor):
    """Inversion at guidance 1, sampling at guidance w (Mokady et al. 2023, section 3.2, name it the baseline).

    Args:
        sharing: none by default, so that only the prompt changes.
    """

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, sharing: Sharing = NOTHING, name: str = "ddim"
    ) -> None:
        super().__init__(backbone, ddim, guidance, sharing)
        self.name = name
        if sharing == NOTHING:
            self.strengths = (1.0,)

    def trajectory(self, source: EncodedSource) -> Trajectory:
        """The noisiest pivot and the empty prompt at every step."""
        pivots = ddim_pivots(self.backbone, self.ddim, source.latent, source.prompt)
        return Trajectory(pivots[0], source.prompt, (source.null,) * len(self.ddim))


class DirectInversion(GuidedEditor):
    """DDIM inversion whose pivots replace the source's latents after every guided step; the target's go their own way.

    The official code adds offsets o_t = z*_(t-1) - z'_(t-1) that it has computed in a pass before. To set the source to
    z*_(t-1) is the same without that pass.
    """

    name = "direct"

    def trajectory(self, source: EncodedSource) -> Trajectory:
        """The trajectory with all pivots."""
        pivots = ddim_pivots(self.backbone, self.ddim, source.latent, source.prompt)
        return Trajectory(pivots[0], source.prompt, (source.null,) * len(self.ddim), pivots=pivots)
