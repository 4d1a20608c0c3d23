"""Floating-point operations of a method's training step, counted without data or weights."""

from functools import reduce
from typing import Any

from train.method import PlanParts
from train.planning.footprint import BalancedRandom, Flop, flop
from train.run.config import with_option


def executed_flop(parts: PlanParts, config: Any) -> Flop:
    """FLOP of a sample's training step on average over the random choices, recomputed ones included."""
    planned = parts.task(config)
    rng, precision = BalancedRandom(planned.samples), config.run.mixed_precision
    return flop(planned.task, planned.batch(planned.samples), rng, precision) / planned.samples


def model_flop(parts: PlanParts, config: Any) -> Flop:
    """FLOP of a sample's training step without what gradient checkpointing computes again: the FLOP of MFU."""
    return executed_flop(parts, reduce(lambda c, option: with_option(c, option, False), parts.checkpointing, config))
