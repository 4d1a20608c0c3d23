"""An adversary on latents: heads on features of the frozen generator's own encoder tell x0 from G's estimate of it.

docs/adversary.md says why this design and not another.
"""

from dataclasses import replace

import torch
from torch import Tensor

from models.backbone import Backbone
from models.precision import without_autocast
from models.text import Prompt
from train.critic.heads import hinge_loss, mean_logit, seeded_heads
from train.methods.turboedit.config import AdversaryConfig
from train.methods.turboedit.features import encoder_features
from train.rng import StepRandom
from train.task import Critic, StepLoss

BETAS = (0.0, 0.99)
"""AdamW's decay rates for D: without momentum, as is usual where the other side moves too."""


class Adversary:
    """D, its loss, and its term in F's.

    Args:
        config: Options of the adversary.
        backbone: G's backbone.
        device: Device of the backbone.
        seed: Seed of D's first weights.
    """

    def __init__(self, config: AdversaryConfig, backbone: Backbone, device: torch.device | str, seed: int) -> None:
        self.config, self.backbone = config, backbone
        self.timesteps = torch.tensor(config.timesteps, device=device)
        unet = backbone.unet
        heads = seeded_heads(unet.config.block_out_channels, unet.config.norm_num_groups, seed)
        self.heads = heads.to(unet.conv_in.weight.device)
        self.critic = Critic(self.heads, config.lr, BETAS)

    def judged(self, step: StepLoss, x0: Tensor, x0_hat: Tensor, prompt: Prompt, rng: StepRandom) -> StepLoss:
        """The step with D's loss and F's term.

        D(z) are the heads' logits on the encoder's features of a_s z + b_s eps', with s drawn from the options'
        timesteps; s and eps' are the same for both latents.

        Args:
            step: F's loss without the term.
            x0: Latents of the pictures, the real ones, [B, C, h, w].
            x0_hat: G's estimates, the fakes, [B, C, h, w]; F's term crosses them.
            prompt: Prompts of the B samples.
            rng: Draws of the step, which also says its number.
        """
        s = self.timesteps[rng.integers("adversary_timestep", len(self.timesteps)).to(x0.device, non_blocking=True)]
        noise = rng.normal("adversary", x0.shape[1:])
        takes_part = rng.step >= self.config.start

        def features(latent: Tensor) -> list[Tensor]:
            return encoder_features(self.backbone, self.backbone.schedule.add_noise(latent, noise, s), prompt, s)

        with torch.no_grad():
            real = features(x0)
        with torch.set_grad_enabled(takes_part and torch.is_grad_enabled()):
            fake = features(x0_hat)
        with without_autocast(x0.device):
            # L_D = relu(1 - D(x0)) + relu(1 + D(x0_hat)), which does not reach F
            on_real, on_fake = self.heads(real), self.heads([feature.detach() for feature in fake])
            loss = hinge_loss(on_real, on_fake)

            # L_F = -D(x0_hat), which does not reach D's weights; zero while D learns alone
            term = x0_hat.new_zeros(())
            if takes_part:
                term = -self.config.weight * mean_logit(self.heads.as_constant(fake)).mean()
        figures = {"critic_loss": loss, "critic_real": mean_logit(on_real), "critic_fake": mean_logit(on_fake)}
        return replace(
            step,
            terms={**step.terms, "weighted_adversary": term},
            report={**step.report, **{name: value.detach() for name, value in figures.items()}},
            critic=loss.mean(),
        )
