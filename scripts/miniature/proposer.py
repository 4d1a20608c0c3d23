"""The miniature's proposer: its LLaVA, taught to propose an edit of a caption, as InstructPix2Pix taught GPT-3."""

import numpy as np
from torch import nn

from data.world.edits import EDIT_KINDS, sample_edit
from scripts.miniature.llava import Exchange, LlavaTask
from train.rng import StepRandom, derived_seed
from train.task import Batch, StepLoss

PROMPT = "please propose an edit of the following caption: {caption}"
"""What it is asked; `prompt` in configs/edit_pairs/miniature.yaml."""

_SHORT_CAPTIONS, _HELDOUT = 0.1, 0.1


def proposing(rng: np.random.Generator) -> Exchange:
    """The caption before an edit -> its instruction and the caption after it."""
    kind = EDIT_KINDS[int(rng.integers(len(EDIT_KINDS)))]
    edit = sample_edit(rng, kind, heldout=rng.random() < _HELDOUT)
    before, after = edit.captions(long=rng.random() >= _SHORT_CAPTIONS)
    return Exchange(PROMPT.format(caption=before), f"Instruction: {edit.instruction}\nResult: {after}")


class ProposerTask(LlavaTask):
    """A proposal for every row of a batch, drawn anew in each step; the samples themselves are not looked at."""

    fields: tuple[str, ...] = ("info",)

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Cross entropy of the proposals. Which of all edits is proposed is left to chance, so it does not go to 0."""
        rows = rng.host_rows.tolist()
        draws = [np.random.default_rng(derived_seed(rng.seed, rng.step, row)) for row in rows]
        [(losses, _)] = model([self._encode([proposing(draw) for draw in draws], rng.device)])
        return StepLoss({"propose": losses.mean()})
