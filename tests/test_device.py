"""The device of a name: what torch does not know, or cannot use here, is told in a sentence with the reason."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from data.jobs import device as module
from data.jobs.device import choose_device, use_tf32
from data.jobs.inheritance import flattened
from eval.edit import main
from tests.processes import run
from train.run.config import RunConfig
from train.run.launch import Launch

MEANT_FOR_A_GPU = ["caption/llava", "edit_pairs/sd15", "instruct_pix2pix/sd15", "stylediffusion/sd15"]
MEANT_FOR_A_GPU += [f"turboedit/sdxl_{card}" for card in ("12gb", "16gb", "24gb", "48gb", "turbo", "turbo_plus")]
MEANT_FOR_A_GPU += [f"turboedit/{model}" for model in ("flux_schnell", "flux2_klein", "sana_sprint", "sd35_turbo")]
MEANT_FOR_A_GPU += [f"turboedit/{model}" for model in ("z_image_turbo", "sd_turbo", "sdxl_lightning_4step")]
MEANT_FOR_A_GPU += [f"turboedit/{model}" for model in ("hyper_sd_4step", "dmd2_4step", "lcm_lora_sdxl")]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def built_for_cuda(monkeypatch: pytest.MonkeyPatch, refusal: str | None) -> None:
    """Make this torch look like a build for CUDA whose first use of the driver ends with `refusal`."""

    def init() -> None:
        if refusal:
            raise RuntimeError(refusal)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu: pytest.MonkeyPatch):
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_auto_is_apples_gpu_where_there_is_one(no_gpu: pytest.MonkeyPatch):
    no_gpu.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("mps") == torch.device("mps")


def test_products_of_float32_are_tf32_on_cuda_alone():
    try:
        use_tf32(torch.device("cpu"))
        assert not torch.backends.cuda.matmul.allow_tf32
        use_tf32(torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_build_for_the_cpu_is_the_reason(no_gpu: pytest.MonkeyPatch):
    no_gpu.setattr(torch.backends.cuda, "is_built", lambda: False)
    told = f"--device is 'cuda', but torch can use no GPU here: torch {torch.__version__} is a build for the CPU; "
    with pytest.raises(ValueError, match=rf"{re.escape(told)}.*; --device cpu computes on the CPU"):
        choose_device("cuda")
    with pytest.raises(ValueError, match=r"--device is 'mps', but torch can use no Apple GPU here: "):
        choose_device("mps")


@pytest.mark.parametrize(
    ("refusal", "visible", "reason"),
    [
        ("Found no NVIDIA driver on your system.\nPlease", None, "says: Found no NVIDIA driver on your system. Please"),
        (None, None, "the driver shows none"),
        ("No CUDA GPUs are available", "7", "CUDA_VISIBLE_DEVICES is '7', and it says: No CUDA GPUs are available"),
    ],
)
def test_the_driver_is_the_reason(no_gpu: pytest.MonkeyPatch, refusal: str | None, visible: str | None, reason: str):
    built_for_cuda(no_gpu, refusal)
    if visible:
        no_gpu.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match=rf"--device is 'cuda:0', .* is built for CUDA 13\.0.*{reason}"):
        choose_device("cuda:0")


def test_auto_says_why_a_build_for_gpus_computes_on_the_cpu(
    no_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    built_for_cuda(no_gpu, "the driver is too old")
    assert choose_device().type == "cpu"
    assert "computing on the CPU, as torch can use no GPU here" in caplog.text and "too old" in caplog.text


def test_auto_says_that_a_build_for_the_cpu_leaves_a_gpu_unused(
    no_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    no_gpu.setattr(torch.backends.cuda, "is_built", lambda: False)
    no_gpu.setattr(module, "_NVIDIA_DRIVER", tmp_path)
    assert choose_device().type == "cpu"
    assert "is a build for the CPU" in caplog.text


def test_gpus_that_are_hidden_on_purpose_are_not_missed(no_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    built_for_cuda(no_gpu, "No CUDA GPUs are available")
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device().type == "cpu"
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "rank", "expected", "current"),
    [("auto", "3", "cuda:1", 1), ("auto", "0", "cuda:0", 0), ("cuda:1", "0", "cuda:1", 1), ("cuda", "1", "cuda", None)],
)
def test_each_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, rank: str, expected: str, current: int | None
):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)  # the rest of set_device is torch's
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == torch.device(expected)
    assert chosen == ([] if current is None else [current])


def test_a_gpu_too_many_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"--device is 'cuda:2', but torch sees 2 GPU\(s\) here, cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "meta"])
def test_a_command_tells_an_unknown_name_in_a_line(tmp_path: Path, name: str):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    words = [f"--encoder={tmp_path}", f"--image={tmp_path / 'image.png'}", "--prompt=a", "--target=b"]
    with pytest.raises(SystemExit, match=rf"--device is '{name}', expected auto, cpu, cuda, cuda:0 \.\.\. or mps"):
        main([*words, f"--out={tmp_path / 'out'}", f"--device={name}"])


def test_configs_of_large_models_mean_a_gpu():
    found = {}
    for path in Path("configs").glob("*/*.yaml"):
        config = yaml.safe_load(flattened(path))
        found[f"{path.parent.name}/{path.stem}"] = config.get("run", config).get("device", "auto")
    assert sorted(name for name, device in found.items() if device == "cuda") == sorted(MEANT_FOR_A_GPU)
    assert set(found.values()) == {"auto", "cuda"}


def test_a_training_on_mps_has_one_process(no_gpu: pytest.MonkeyPatch):
    no_gpu.setattr(torch.backends.mps, "is_available", lambda: True)
    no_gpu.delenv("ACCELERATE_USE_CPU", raising=False)
    no_gpu.setenv("RANK", "0")
    no_gpu.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"--run\.device is auto, which is MPS here and trains in one process"):
        Launch(RunConfig("unused"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_training_that_means_a_gpu_stops_without_one(tmp_path: Path):
    words = ["-m", "train.turboedit", "--config=configs/turboedit/miniature.yaml", f"--run.folder={tmp_path / 'run'}"]
    words.append(f"--data.shards={tmp_path / 'missing'}")
    said = run(*words, "--run.device=cuda", status=1, ACCELERATE_USE_CPU=None).stderr
    assert "--run.device is 'cuda', but torch can use no GPU here: " in said
    assert said.rstrip().endswith("--run.device cpu computes on the CPU")
    goes_on = run(*words, "--run.device=cpu", status=1, ACCELERATE_USE_CPU=None).stderr
    assert str(tmp_path / "missing") in goes_on
