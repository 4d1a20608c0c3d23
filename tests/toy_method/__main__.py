"""The toy method's command.

python -m tests.toy_method --config FILE
"""

from collections.abc import Sequence

from data.jobs.command import run
from tests.toy_method import METHOD
from tests.toy_method.config import ToyConfig
from train.methods.training import LOG_FORMAT, train


def train_toy(config: ToyConfig) -> None:
    """Train; the same command on the same run folder goes on."""
    train(METHOD, config)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("tests.toy_method", train_toy, argv, log_format=LOG_FORMAT)


if __name__ == "__main__":
    main()
