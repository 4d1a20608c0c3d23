r"""StyleDiffusion, amortised: train one mapping network for all images and timesteps on a frozen Stable Diffusion.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.stylediffusion --config configs/stylediffusion/sd15.yaml
python -m train.stylediffusion --config configs/stylediffusion/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import run
from train.methods.stylediffusion import METHOD
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.training import LOG_FORMAT, train


def train_stylediffusion(config: StyleDiffusionConfig) -> None:
    """Train; the same command on the same run folder goes on."""
    train(METHOD, config)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.stylediffusion", train_stylediffusion, argv, log_format=LOG_FORMAT)


if __name__ == "__main__":
    main()
