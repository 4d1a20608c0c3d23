r"""InstructPix2Pix: train a Stable Diffusion to follow orders on a picture that it sees, from pairs of pictures.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.instruct_pix2pix --config configs/instruct_pix2pix/sd15.yaml
python -m train.instruct_pix2pix --config configs/instruct_pix2pix/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import run
from train.methods.instruct_pix2pix import METHOD
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.training import LOG_FORMAT, train
from train.run.config import with_option


def train_instruct_pix2pix(config: InstructPix2PixConfig) -> None:
    """Train; the same command on the same run folder goes on."""
    from train.methods.lora import with_targets  # torch loads after the command line is understood

    train(METHOD, with_option(config, "unet.lora", with_targets(config.unet.lora, config.backbone.path)))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.instruct_pix2pix", train_instruct_pix2pix, argv, log_format=LOG_FORMAT)


if __name__ == "__main__":
    main()
