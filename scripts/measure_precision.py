"""Error of the generator's x0 by its dtype, and what the dtype does to an encoder that is trained on it.

    python -m scripts.measure_precision
    python -m scripts.measure_precision --shards runs/demo/latents --steps 150 --out runs/precision

The first part compares x0 (TurboEdit, eq. 3) with float32's on scenes that are noised to each timestep. With --shards
an encoder is trained on each dtype, all else equal, and its reconstruction of test scenes is compared with the VAE's
round trip after one step and after all. It prints tables; the last line is one JSON object.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import run

STUDENTS = ("models/miniature/student", "models/miniature/student_epsilon")
DTYPES = ("float32", "float16", "bfloat16", "int8", "fp8")


def measure(
    backbones: tuple[str, ...] = STUDENTS,
    dtypes: tuple[str, ...] = DTYPES,
    scenes: int = 64,
    shards: Path | None = None,
    steps: int = 150,
    out: Path = Path("runs/precision"),
    variant: str | None = None,
) -> dict[str, object]:
    """Measure the error of x0 by dtype and, with shards, encoders that were trained on each.

    Args:
        backbones: Few-step generators, diffusers folders or hub ids.
        dtypes: Dtypes of the UNet; of int8 and fp8, which linear layers hold, it computes in float16.
        scenes: Test scenes, rendered at the generator's size.
        shards: Training shards with the latents of the generators' VAE; without them nothing is trained.
        steps: Training steps of each encoder, with the other options of configs/turboedit/miniature.yaml.
        out: Folder of the trainings; one that is there goes on.
        variant: File variant of the generators' weights, such as fp16.

    Raises:
        ValueError: A number below one, an unknown dtype, or shards that do not fit.
    """
    if scenes < 1 or steps < 1:
        raise ValueError(f"--scenes {scenes}, --steps {steps}: expected at least 1")
    unknown = sorted(set(dtypes) - set(DTYPES))
    if unknown:
        raise ValueError(f"--dtypes {', '.join(unknown)}: expected some of {', '.join(DTYPES)}")

    from scripts.bench.precision import errors_of_x0, reconstructions

    found: dict[str, object] = {"x0": errors_of_x0(backbones, dtypes, scenes, variant)}
    if shards is not None:
        found["reconstruction"] = reconstructions(backbones, dtypes, scenes, shards, steps, out, variant)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print(json.dumps(run("scripts.measure_precision", measure, argv)))


if __name__ == "__main__":
    main()
