"""Direct inversion (Ju et al. 2024, PnP Inversion, Algorithm 1): the source's branch is put on the pivots."""

from eval.editors.guided import GuidedEditor, Source
from models.ddim import ddim_pivots
from models.prompt_to_prompt import Track


class DirectInversion(GuidedEditor):
    """DDIM inversion whose pivots replace the source's latents after every guided step; the target's go their own way.

    The official code adds offsets o_t = z*_(t-1) - z'_(t-1) that it has computed in a pass before. To set the source to
    z*_(t-1) is the same without that pass.
    """

    name = "direct"

    def track(self, source: Source) -> Track:
        """All pivots."""
        pivots = ddim_pivots(self.backbone, self.ddim, source.latent, source.prompt)
        return Track(pivots[0], source.prompt, (source.null,) * len(self.ddim), pivots=pivots)
