"""An encoder on fewer of its timesteps, as a pipeline of its own: so that editors are compared at equal steps."""

from collections.abc import Sequence

from models.turboedit_pipeline import TurboEditPipeline

PUBLISHED_STEPS = (1, 2, 4)
"""The numbers of steps in table 2 of TurboEdit's paper."""


def checked_steps(pipeline: TurboEditPipeline, steps: Sequence[int] | None) -> tuple[int, ...]:
    """`steps` in ascending order; None for those of PUBLISHED_STEPS that the encoder has, or else for all of its own.

    Raises ValueError for a number of steps on whose timesteps the encoder was not trained.
    """
    if steps is None:
        return tuple(n for n in PUBLISHED_STEPS if n in pipeline.step_counts) or (len(pipeline.timesteps),)
    if not steps:
        raise ValueError("steps is empty; expected numbers of steps such as [1, 2, 4]")
    for count in steps:
        pipeline.timesteps_of(count)
    return tuple(sorted(set(steps)))


def with_steps(pipeline: TurboEditPipeline, steps: int) -> TurboEditPipeline:
    """`pipeline` on `steps` of its timesteps, evenly spread from the noisiest (999, 499); weights are shared."""
    shorter = TurboEditPipeline(
        **pipeline.components,
        timesteps=" ".join(map(str, pipeline.timesteps_of(steps))),
        attention_resolution=pipeline.config.attention_resolution,
    )
    shorter.set_progress_bar_config(disable=True)
    return shorter
