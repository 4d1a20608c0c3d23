"""The device of a name: what torch does not know, or is not there, is told in a sentence."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from data.jobs.device import choose_device
from eval.edit import main


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"--device is 'cuda', but torch sees no GPU here; take --device auto or cpu"):
        choose_device("cuda")


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
    with pytest.raises(ValueError, match=r"--device is 'cuda:2', but torch sees 2 GPU\(s\) here"):
        choose_device("cuda:2")


def test_a_command_tells_an_unknown_name_in_a_line(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    words = [f"--encoder={tmp_path}", f"--image={tmp_path / 'image.png'}", "--prompt=a", "--target=b"]
    with pytest.raises(SystemExit, match=r"--device is 'gpu', expected auto, cpu, cuda, cuda:0"):
        main([*words, f"--out={tmp_path / 'out.png'}", "--device=gpu"])
