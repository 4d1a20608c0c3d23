"""Says before GPUs are spent whether a training fits, what it costs, and which option would make it fit.

    python -m train.plan --config configs/turboedit/sdxl_turbo.yaml [--gpus 8 --gpu-memory 80 --mfu 0.4] [--run.steps 9]

Needs the config files of the models, no weights and no GPU. The exit status is 0 if a preset of configs/accelerate fits
(or that of --preset) and the shards, where they are here, can be trained on; else, and where a value or a file is
wrong, 1; 2 where there is no such option, or no --config.
"""

import json
import logging
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.jobs.command import parse_with, told
from data.jobs.inheritance import flattened
from train.method import Method
from train.methods import METHODS, method_of
from train.planning.options import PlanOptions
from train.run.config import option_of

if TYPE_CHECKING:
    from train.planning.report import Plan


def find_method(words: Sequence[str]) -> Method:
    """Find the method whose config file the command line names.

    Raises:
        SystemExit: No file is named; with status 2.
        ValueError: It cannot be read, or its method is unknown.
    """
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    named += [after for word, after in pairwise(words) if word == "--config"]
    if not named:
        print("train.plan: name the config of a training: --config configs/turboedit/sdxl_turbo.yaml", file=sys.stderr)
        raise SystemExit(2)
    try:
        parts = yaml.safe_load(flattened(Path(named[0])))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read --config {named[0]}: {error}") from error
    return method_of(parts if isinstance(parts, dict) else {}, named[0])


def make_plan(method: Method, config: Any, options: PlanOptions) -> "Plan":
    """Count all figures of a training.

    Raises:
        ValueError: A config file of the models is missing, or options do not fit together.
    """
    from train.planning.budget import Budget, Machine  # torch loads after the command line is understood
    from train.planning.flop import executed_flop, model_flop
    from train.planning.measure import measure_steps
    from train.planning.report import Plan
    from train.planning.shards import read_shards

    # First, as it stops where shards or weights are missing.
    measured = measure_steps(method, config, options.measure) if options.measure else None
    parts = method.plan()
    budget = Budget(method, Machine(options.gpus, options.machines, options.gpu_memory))
    planned = parts.task(config)
    executed = executed_flop(parts, config)
    recomputes = any(option_of(config, name) for name in parts.checkpointing)
    return Plan(
        config=config,
        options=options,
        trained=planned.trained,
        critic=planned.critic,
        frozen=planned.frozen,
        prompt_bytes=planned.prompt_bytes(),
        footprint=budget.footprint(config),
        model=model_flop(parts, config) if recomputes else executed,
        executed=executed,
        verdicts=budget.judge(config),
        alone=budget.alone(config),
        shards=read_shards(
            config.data.shards, method.backbone(config), method.variant(config), config.run.global_batch
        ),
        measured=measured,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point.

    Raises:
        SystemExit: With status 1 where nothing fits, or a value or a file is wrong; 2 where there is no such option.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with told("train.plan", "--debug" in words):
        method = METHODS[0] if {"-h", "--help"} & set(words) else find_method(words)
        config_class: type[Any] = method.config
        config, options = parse_with(config_class, PlanOptions, words, "train.plan", __doc__)
        if options.json and not Path(options.json).parent.is_dir():
            raise ValueError(f"--json {options.json}: there is no folder {Path(options.json).parent}")
        plan = make_plan(method, config, options)
        from train.planning.report import plan_text

        print(plan_text(plan))
        if options.json:
            Path(options.json).write_text(json.dumps(plan.json(), indent=2) + "\n")
    if not plan.answer.startswith("yes"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
