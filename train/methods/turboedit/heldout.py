"""What TurboEdit measures of held-out pictures: inversions as users run them, the noise that they give, and edits.

By timestep: latent_mse, kl, posterior_sigma; noise_... of a draw from F's Gaussian, mean_noise_... of its mean, which
inversion takes. By number of steps: psnr_1, psnr_2 ... to the VAE's round trip. Of the edits that are tried, each
without a mask and at strength 1:

moved         how far the prompt moves the picture: root mean square distance of the edit from the reconstruction inside
              of the mask, as a share of the range
psnr_outside  how far it moves the rest: PSNR of the edit to the VAE's round trip outside of the mask
mask_share    share of the picture inside of it
changed       scenes, with a reader: 1 if every edited attribute reads as in the target (eval.scene_edits.judge)
kept          scenes, with a reader: share of the other attributes that read as in the round trip

The mask is that of the true edit where the picture is a scene, else the automatic one of the generator's first
estimates under both prompts.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data.world.edits import Edit
from eval.editors.few_steps import decode_latents
from eval.metrics.attributes import AttributeReader
from eval.metrics.noise import noise_moments
from eval.metrics.pixels import DATA_RANGE, masked_psnr, mse, psnr
from eval.scene_edits.judge import has_changed, kept_share, load_reader, scene_readings
from models.generator import FewStepGenerator
from models.masks import difference_mask, soft_mask
from models.options import MASK_THRESHOLD
from models.text import Prompt
from models.turboedit_inversion import TurboEditInversion
from models.turboedit_steps import EditSteps, InversionStep, inversion_steps
from models.turboedit_wishes import Wish, mixed
from train.heldout.probe import Probe
from train.rng import SampleRandom

_DECODED = 4
"""Pictures that the VAE decodes at a time: it takes more memory than all else."""

_OF_EDITS = ("moved", "psnr_outside", "mask_share", "changed", "kept")

Encode = Callable[[Tensor, Tensor, Prompt, Tensor], tuple[Tensor, Tensor]]
"""F: mean and log-variance of (x0, previous reconstruction, prompt, t)."""


class HeldOutInversions:
    """Inversions and edits of held-out latents on a generator.

    Args:
        generator: G.
        attributes: Folder of the network that reads edits of scenes; None leaves `changed` and `kept` out.

    Raises:
        ValueError: `attributes` is no folder.
    """

    def __init__(self, generator: FewStepGenerator, attributes: str | None) -> None:
        if attributes is not None and not Path(attributes).is_dir():
            raise ValueError(f"data.attributes is {attributes}, expected the folder of a network that reads scenes")
        self.generator, self.backbone, self.attributes = generator, generator.backbone, attributes

    @cached_property
    def reader(self) -> AttributeReader | None:
        """The reader of attributes, loaded when it is first needed."""
        return None if self.attributes is None else load_reader(Path(self.attributes), self.backbone.network.device)

    def figures(
        self, encode: Encode, x0: Tensor, prompt: Prompt, probes: Sequence[Probe | None], rng: SampleRandom
    ) -> dict[str, Tensor]:
        """The figures of this file by name, [b]; nan where a sample has none.

        Args:
            encode: F with the weights that are looked at.
            x0: Latents [b, 4, h, w].
            prompt: Descriptions of the pictures, those before the edits.
            probes: The edits that are tried.
            rng: Noise of the draws.
        """
        shown, steps = self.decode(x0), list(inversion_steps(encode, self.generator, x0, prompt))
        pictures = [self.decode(step.reconstruction) for step in steps]
        found = {f"psnr_{number}": psnr(picture, shown) for number, picture in enumerate(pictures, 1)}
        for t, step in zip(self.generator.timesteps, steps, strict=True):
            drawn = step.posterior.sample(rng.normal(f"t{t}", x0.shape[1:]))
            by_timestep = {
                "latent_mse": mse(step.reconstruction, x0),
                "kl": step.posterior.kl(),
                "posterior_sigma": torch.exp(0.5 * step.posterior.logvar).flatten(1).mean(1),
                **{f"noise_{name}": value for name, value in noise_moments(drawn).items()},
                **{f"mean_noise_{name}": value for name, value in noise_moments(step.noise).items()},
            }
            found |= {f"{name}/t{t}": value for name, value in by_timestep.items()}
        return found | self._of_edits(self.inversion(x0, prompt, steps), probes, shown, pictures[-1])

    def inversion(self, x0: Tensor, prompt: Prompt, steps: Sequence[InversionStep]) -> TurboEditInversion:
        """The steps of an inversion together, as the pipeline has them."""
        return TurboEditInversion(
            self.generator.timesteps,
            tuple(step.noise for step in steps),
            tuple(step.reconstruction for step in steps),
            tuple(torch.exp(0.5 * step.posterior.logvar) for step in steps),
            prompt,
            (("",),) * len(x0),  # texts, which only masks and maps by words read
            latent=x0,
        )

    def edited(self, inversion: TurboEditInversion, targets: Sequence[str]) -> TurboEditInversion:
        """The edits of some inversions to as many descriptions, in the paper's form.

        With what stands where nothing changes (`outside="source"`) an encoder that has learned nothing would show
        edits nearly as good.
        """
        wish = Wish(tuple(targets), (1.0,) * len(targets))
        prompt = mixed(inversion.prompt, [self.backbone.encode_text(wish.texts)], [wish])
        steps = EditSteps(self.generator, resolution=0)  # there is no mask from attention
        return steps.edit(inversion, [wish], prompt, None, "reconstruction", 0, lambda _, x0: x0)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures [b, 3, H, W] in [-1, 1] of latents [b, 4, h, w]."""
        return torch.cat([decode_latents(self.backbone, part) for part in latent.split(_DECODED)])

    def edit_column(self, inversion: TurboEditInversion, probes: Sequence[Probe | None], like: Tensor) -> Tensor:
        """Pictures of the edits that are tried, white where none is; in the shape of `like` [b, 3, H, W]."""
        column, rows = torch.ones_like(like), _rows(probes)
        if rows:
            edits = self.edited(inversion[rows], [probe.target for probe in probes if probe])
            column[rows] = self.decode(edits.reconstructions[-1])
        return column

    def _of_edits(
        self, inversion: TurboEditInversion, probes: Sequence[Probe | None], shown: Tensor, reconstructed: Tensor
    ) -> dict[str, Tensor]:
        """Figures of the edits, [b]; `shown` are the VAE's round trips of the b pictures."""
        found = {name: shown.new_full((len(shown),), math.nan) for name in _OF_EDITS}
        rows = _rows(probes)
        if not rows:
            return found
        asked = [probe for probe in probes if probe]
        inversion, before = inversion[rows], shown[rows]
        edits = self.edited(inversion, [probe.target for probe in asked])
        after = self.decode(edits.reconstructions[-1])
        assert edits.first is not None
        mask = self._masks(edits.first - inversion.reconstructions[0], [probe.edit for probe in asked], after)
        found["moved"][rows] = _distance(after, reconstructed[rows], mask)
        found["psnr_outside"][rows] = masked_psnr(after, before, ~mask)
        found["mask_share"][rows] = mask.float().flatten(1).mean(1)
        if self.reader is None or not any(probe.edit for probe in asked):
            return found
        read = zip(rows, asked, scene_readings(self.reader, after), scene_readings(self.reader, before), strict=True)
        for row, probe, reading, source in read:
            if probe.edit:
                found["changed"][row] = has_changed(probe.edit, reading)
                found["kept"][row] = kept_share(probe.edit, reading, source)
        return found

    def _masks(self, difference: Tensor, edits: Sequence[Edit | None], pictures: Tensor) -> Tensor:
        """Where each edit may change the pictures [n, 3, H, W], bool [n, 1, H, W]."""
        height, width = pictures.shape[-2:]
        places = difference_mask(difference, MASK_THRESHOLD, self.backbone.network_dtype)
        masks = soft_mask(places, (height, width), blur=0) > 0.5
        for row, edit in enumerate(edits):
            if edit is not None:
                masks[row, 0] = torch.from_numpy(edit.mask((height, width))).to(masks.device)
        return masks


def _rows(probes: Sequence[Probe | None]) -> list[int]:
    """Numbers of the samples on which an edit is tried."""
    return [row for row, probe in enumerate(probes) if probe is not None]


def _distance(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Root mean square distance [n] of images [n, 3, H, W] inside of a mask, as a share of the range; nan if empty."""
    inside = mask.expand_as(a).flatten(1)
    squares = ((a - b) / DATA_RANGE).square().flatten(1) * inside
    return (squares.sum(1) / inside.sum(1)).sqrt()
