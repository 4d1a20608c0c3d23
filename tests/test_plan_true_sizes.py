"""Recipes of Z-Image and SANA-Sprint counted at the models' true sizes, by their config files alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.jobs.command import parse
from tests.tiny_sana import write_sana_configs
from tests.tiny_z_image import write_z_image_configs
from train.methods.turboedit import METHOD
from train.methods.turboedit.config import TurboEditConfig
from train.planning.budget import Budget, Machine


@pytest.mark.long
@pytest.mark.timeout(1200)  # Z-Image's pictures go one by one through its lists
@pytest.mark.parametrize(
    ("recipe", "write", "gigabytes"),
    [("z_image_turbo", write_z_image_configs, 48.0), ("sana_sprint", write_sana_configs, 32.0)],
)
def test_a_recipe_fits_its_gpu(recipe: str, write: Callable[[Path], Path], gigabytes: float, tmp_path: Path):
    words = ["--config", f"configs/turboedit/{recipe}.yaml", f"--generator.path={write(tmp_path)}"]
    found = Budget(METHOD, Machine(1, 1, gigabytes)).alone(parse(TurboEditConfig, words))
    assert found.fits, found
