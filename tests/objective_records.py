"""Records of encoders as train.objectives keeps them, of scores that are invented."""

import json
from typing import Any

import numpy as np

from data.world.edits import EDIT_KINDS
from eval.objectives.encoders import BASELINE, CEILING, OURS
from eval.scene_edits.judge import EditScores

STRENGTHS = (0.5, 1.0)
NUM = 18


def record(seed: int, gain: float = 0.0) -> dict[str, Any]:
    """What might be measured of an encoder; `gain` decibels are added to all that it keeps."""
    draw = np.random.default_rng(seed)

    def result(name: str, decibels: float) -> dict[str, Any]:
        scores = [
            [
                EditScores(
                    kind, float(i % 3 < 1 + 2 * s or name == CEILING), 0.9, 1.0, 20.0, 30 + decibels - s + i, 80, 1
                )
                for i, kind in enumerate(kinds)
            ]
            for s in STRENGTHS
        ]
        rows = [
            {
                "editor": name,
                "step": step,
                "key": f"{i}",
                "psnr_to_vae": 20.0 + step + decibels + draw.normal(),
                "psnr": 20.0 + step,
            }
            for step in (1, 2)
            for i in range(NUM)
        ]
        levels = {"999": {"std": {"mean": 0.9, "se": 0.01}, "lag1": {"mean": 0.1, "se": None}}}
        return {
            "name": name,
            "strengths": STRENGTHS,
            "scores": [[vars(score) for score in row] for row in scores],
            "noises": {f"{name}_mean": levels} if name == OURS else {},
            "reconstruction_rows": rows,
        }

    kinds = [EDIT_KINDS[i % len(EDIT_KINDS)] for i in range(NUM)]
    split = {name: result(name, gain if name == OURS else 0.0) for name in (OURS, BASELINE, CEILING)}
    return json.loads(json.dumps({"minutes": 1.0 + seed, "vae": [34.0] * NUM, "validation": split, "test": split}))
