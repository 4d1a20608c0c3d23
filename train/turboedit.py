r"""TurboEdit: train a noise encoder F on a frozen few-step generator G with MSE + lambda KL.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.turboedit --config configs/turboedit/sdxl_turbo.yaml
python -m train.turboedit --config configs/turboedit/miniature.yaml --optim.lr 2e-4
"""

from collections.abc import Sequence

from data.jobs.command import run
from train.methods.training import LOG_FORMAT, train
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.run.config import with_option


def train_turboedit(config: TurboEditConfig) -> None:
    """Train; the same command on the same run folder goes on."""
    from train.methods.lora import with_targets  # torch loads after the command line is understood

    lora = with_targets(config.encoder.lora, config.generator.path)
    train(METHOD, with_option(config, "encoder.lora", lora))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.turboedit", train_turboedit, argv, log_format=LOG_FORMAT)


if __name__ == "__main__":
    main()
