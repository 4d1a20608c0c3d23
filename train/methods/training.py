"""One way to train for all methods: the processes, the method's task and data, the engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.method import Method

if TYPE_CHECKING:
    from train.run.launch import Launch

LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"


def train(method: Method, config: Any) -> None:
    """Train in the config's run folder, from the newest checkpoint if there is one.

    Raises:
        ValueError: The config does not fit its run folder, its shards, its models, the launch, or the weights that it
            is to start from; or a file that its models are made of has changed since the run began.
    """
    from train.engine import fit  # torch loads after the command line is understood
    from train.methods.initial_weights import initial_weights
    from train.methods.network_files import digests
    from train.planning.flop import model_flop
    from train.run.folder import INITIAL_WEIGHTS, NETWORK_FILES, check_network_files
    from train.run.launch import Launch

    launch = Launch(config.run, config.optim.grad_clip)
    if config.data.verify:
        for folder in filter(None, (config.data.shards, config.data.validation)):
            _verify(folder, launch)
    files = digests(method.files(config))
    check_network_files(Path(config.run.folder), files)
    initial = initial_weights(method, config)
    task, dataset = method.load(config, launch.device)
    if initial is not None:
        initial.give(task.trainable)
    record = {INITIAL_WEIGHTS: initial and initial.record, NETWORK_FILES: files}
    record = {name: dict(found) for name, found in record.items() if found}
    fit(task, dataset, config, launch, lambda: model_flop(method.plan(), config).total, record)


def _verify(folder: str, launch: "Launch") -> None:
    """Read all shards through, divided over the ranks. Raises ValueError on every rank if one is damaged."""
    from data.jobs.sharing import Ranks
    from data.shards.verification import damage_words, damaged_shards

    damaged = launch.gather(damaged_shards(folder, Ranks(launch.rank, launch.world_size)))
    if damaged:
        raise ValueError(damage_words(folder, sorted(damaged)))
