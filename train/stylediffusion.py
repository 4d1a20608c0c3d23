"""StyleDiffusion, amortised: train one mapping network for all images and timesteps on a frozen Stable Diffusion.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.stylediffusion --config configs/stylediffusion/sd15.yaml
python -m train.stylediffusion --config configs/stylediffusion/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import parse
from train.methods.stylediffusion import METHOD
from train.methods.training import train


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    train(METHOD, parse(METHOD.config, argv, description=__doc__))


if __name__ == "__main__":
    main()
