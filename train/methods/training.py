"""One way to train for all methods: the processes, the method's task and data, the engine."""

from typing import Any

from train.method import Method

LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"


def train(method: Method, config: Any) -> None:
    """Train in the config's run folder, from the newest checkpoint if there is one.

    Raises:
        ValueError: The config does not fit its run folder, its shards, its models or the launch.
    """
    from train.engine import fit  # torch loads after the command line is understood
    from train.planning.flop import model_flop
    from train.run.launch import Launch

    launch = Launch(config.run, config.optim.grad_clip)
    task, dataset = method.load(config, launch.device)
    fit(task, dataset, config, launch, lambda: model_flop(method.plan(), config).total)
