"""Says before GPUs are spent whether a training fits, what it costs, and which option would make it fit.

    python -m train.plan --config configs/turboedit/sdxl_turbo.yaml [--gpus 8 --gpu-memory 80 --mfu 0.4] [--run.steps 9]

Needs the config files of the models, no weights and no GPU. The exit status is 0 if a preset of configs/accelerate fits
(or that of --preset) and the shards, where they are here, can be trained on; else, and where a value or a file is
wrong, 1; 2 where there is no such option.
"""

import json
import logging
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from data.jobs.command import parse_with, underscored
from train.method import Planner, option_of
from train.methods.instruct_pix2pix.plan import INSTRUCT_PIX2PIX
from train.methods.stylediffusion.plan import STYLEDIFFUSION
from train.methods.turboedit.plan import TURBOEDIT
from train.planning.budget import Budget, Machine
from train.planning.measure import measure
from train.planning.report import Plan, PlanOptions, plan_text
from train.planning.shards import read_shards

PLANNERS: dict[str, Planner] = {"generator": TURBOEDIT, "mapper": STYLEDIFFUSION, "unet": INSTRUCT_PIX2PIX}
"""By the part of a config that only its method has."""


def find_planner(words: Sequence[str]) -> Planner:
    """The planner of the method whose config file the command line names.

    Raises:
        ValueError: no file is named, it cannot be read, or its method is unknown.
    """
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    named += [after for word, after in pairwise(words) if word == "--config"]
    if not named:
        raise ValueError("name the config of a training: --config configs/turboedit/sdxl_turbo.yaml")
    try:
        parts = yaml.safe_load(Path(named[0]).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read --config {named[0]}: {error}") from error
    named_parts = parts if isinstance(parts, dict) else ()
    planner = next((PLANNERS[part] for part in named_parts if part in PLANNERS), None)
    if planner is None:
        raise ValueError(f"{named[0]} is the config of no method that is known here: it has none of {list(PLANNERS)}")
    return planner


def make_plan(planner: Planner, config: Any, options: PlanOptions) -> Plan:
    """All figures of a training.

    Raises:
        ValueError: a config file of the models is missing, or options do not fit together.
    """
    # First, as it stops where shards or weights are missing.
    measured = measure(planner, config, options.measure) if options.measure else None
    budget = Budget(planner, Machine(options.gpus, options.machines, options.gpu_memory))
    sketch = planner.sketch(config)
    executed = planner.executed_flop(config)
    recomputes = any(option_of(config, name) for name in planner.checkpointing)
    return Plan(
        config=config,
        options=options,
        trained=sketch.trained,
        frozen=sketch.frozen,
        footprint=budget.footprint(config),
        model=planner.model_flop(config) if recomputes else executed,
        executed=executed,
        verdicts=budget.judge(config),
        alone=budget.alone(config),
        shards=read_shards(config.data.shards, planner.backbone(config), config.run.global_batch),
        measured=measured,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point.

    Raises:
        SystemExit: with status 1 where nothing fits, or a value or a file is wrong; 2 where there is no such option.
    """
    words = underscored(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        planner = PLANNERS["generator"] if {"-h", "--help"} & set(words) else find_planner(words)
        config_class: type[Any] = planner.config
        config, options = parse_with(config_class, PlanOptions, words, description=__doc__)
        if options.json and not Path(options.json).parent.is_dir():
            raise ValueError(f"--json {options.json}: there is no folder {Path(options.json).parent}")
        plan = make_plan(planner, config, options)
        print(plan_text(plan))
        if options.json:
            Path(options.json).write_text(json.dumps(plan.json(), indent=2) + "\n")
    except (ValueError, OSError) as error:
        raise SystemExit(f"train.plan: {error}") from error
    if not plan.answer.startswith("yes"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
