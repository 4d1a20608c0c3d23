"""InstructPix2Pix: train a Stable Diffusion to follow orders on a picture that it sees, from pairs of pictures.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.instruct_pix2pix --config configs/instruct_pix2pix/sd15.yaml
python -m train.instruct_pix2pix --config configs/instruct_pix2pix/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import parse
from train.methods.instruct_pix2pix import METHOD
from train.methods.training import train


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    train(METHOD, parse(METHOD.config, argv, description=__doc__))


if __name__ == "__main__":
    main()
