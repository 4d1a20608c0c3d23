"""Fixtures for all tests. Nothing heavy is imported with this file: the process that hands out the tests runs none."""

import gc
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import stop_forking

if TYPE_CHECKING:
    from models.backbone import Backbone


_code_cache = tempfile.TemporaryDirectory(prefix="diffusers_modules_")


def pytest_configure() -> None:
    """Gives this worker its own cache of exported code, which diffusers' own loading does not guard against others."""
    os.environ["HF_MODULES_CACHE"] = _code_cache.name
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it leaves in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leaves all that was imported out of garbage collections, for which the end of each fit and each export asks."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Ends the process that `tests.processes` has forked others from."""
    stop_forking()
    _code_cache.cleanup()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random StableDiffusionXLPipeline folder: 64 px images, latents [4, 16, 16], text_time conditioning."""
    from tests.tiny_backbones import save_tiny_backbone

    return save(save_tiny_backbone, tmp_path_factory.mktemp("tiny_backbone"), seed=0)


@pytest.fixture(scope="session")
def tiny_sd_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random StableDiffusionPipeline folder of the same sizes: one text encoder, v prediction."""
    from tests.tiny_backbones import save_tiny_sd_backbone

    return save(save_tiny_sd_backbone, tmp_path_factory.mktemp("tiny_sd_backbone"), seed=1)


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random StableDiffusion3Pipeline folder: 64 px images, latents [8, 16, 16], rectified flow."""
    from tests.tiny_sd3 import save_tiny_sd3

    return save(save_tiny_sd3, tmp_path_factory.mktemp("tiny_sd3"), seed=2)


@pytest.fixture(scope="session")
def tiny_z_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random ZImagePipeline folder: 64 px images, latents [16, 16, 16], rectified flow, prompts in rows."""
    from tests.tiny_z_image import save_tiny_z_image

    return save(save_tiny_z_image, tmp_path_factory.mktemp("tiny_z_image"), seed=3)


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random SanaSprintPipeline folder: 64 px images, latents [32, 16, 16], trigonometric flow."""
    from tests.tiny_sana import save_tiny_sana

    return save(save_tiny_sana, tmp_path_factory.mktemp("tiny_sana"), seed=4)


def save(write: Callable[[Path], None], folder: Path, seed: int) -> str:
    """The folder, with a backbone in it that the seed decides."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        write(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random FluxPipeline folder, FLUX.1-schnell's: 64 px images, latents [4, 16, 16]."""
    from tests.tiny_flux import save_tiny_flux

    return save(save_tiny_flux, tmp_path_factory.mktemp("tiny_flux"), seed=3)


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random Flux2KleinPipeline folder: 64 px images, patchified latents [16, 8, 8]."""
    from tests.tiny_flux import save_tiny_flux2

    return save(save_tiny_flux2, tmp_path_factory.mktemp("tiny_flux2"), seed=3)


@pytest.fixture(scope="session")
def turboedit_words(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> list[str]:
    """Options of a TurboEdit training of a few steps on the tiny backbone, but for its folder."""
    from tests.exported_runs import train_options

    return train_options(tmp_path_factory.mktemp("machine_of_somebody"), tiny_backbone)


@pytest.fixture(scope="session")
def turboedit_run(turboedit_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of such a training of all weights."""
    from tests.exported_runs import trained

    return trained(tmp_path_factory.mktemp("machine_of_somebody") / "run", turboedit_words)


@pytest.fixture(scope="session")
def turboedit_export(turboedit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to which that run is exported; a test that changes it takes a copy."""
    from train.export import export

    out = tmp_path_factory.mktemp("machine_of_somebody") / "encoder"
    export(turboedit_run, out)
    return out


@pytest.fixture(scope="session")
def lora_run(turboedit_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of such a training of adapters."""
    from tests.exported_runs import trained

    return trained(tmp_path_factory.mktemp("run") / "lora", turboedit_words, "--encoder.lora.rank", "4")


@pytest.fixture(scope="module")
def backbone(tiny_sd_backbone: str) -> "Backbone":
    """The tiny Stable Diffusion, loaded anew for each file of tests."""
    from models.backbone import Backbone

    return Backbone.load(tiny_sd_backbone)


@pytest.fixture(scope="session", params=["sdxl", "sd"])
def any_backbone(request: pytest.FixtureRequest, tiny_backbone: str, tiny_sd_backbone: str) -> str:
    """Each of the two folders in turn."""
    return {"sdxl": tiny_backbone, "sd": tiny_sd_backbone}[request.param]


@pytest.fixture(scope="session", params=["sdxl", pytest.param("sd", marks=pytest.mark.long)])
def either_backbone(request: pytest.FixtureRequest, tiny_backbone: str, tiny_sd_backbone: str) -> str:
    """The SDXL-like folder, and in the long tests the other too: for what knows of no family of models."""
    return {"sdxl": tiny_backbone, "sd": tiny_sd_backbone}[request.param]
