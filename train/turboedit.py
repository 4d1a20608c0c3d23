"""TurboEdit: train a noise encoder F on a frozen few-step generator G with MSE + lambda KL.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.turboedit --config configs/turboedit/sdxl_turbo.yaml
python -m train.turboedit --config configs/turboedit/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import parse
from train.methods.training import train
from train.methods.turboedit import METHOD


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    train(METHOD, parse(METHOD.config, argv, description=__doc__))


if __name__ == "__main__":
    main()
