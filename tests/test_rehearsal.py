"""The rehearsal of the whole way, at a tenth of SDXL's width: the same script, commands and promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts.rehearsal import main
from scripts.rehearse.measured import MAX_HOST_GB, Row, measure_stage, table

NAMES = [
    *("libraries alone", "build the model", "photographs", "data.caption", "data.inspect", "data.encode", "train.plan"),
    *("train", "resume", "export, merged", "export, apart", "export, encoder_only"),
    *("diffusers alone, merged", "diffusers alone, encoder_only"),
]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_tenth_of_the_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    main([str(tmp_path / "out"), "--size=tenth", "--device=cpu", "--steps=1"])
    assert "all promises are kept" in capfd.readouterr().out
    rows = json.loads((tmp_path / "out/rehearsal.json").read_text())
    assert [row["name"] for row in rows] == NAMES
    assert all(row["seconds"] > 0 and 0 < row["host_gb"] < MAX_HOST_GB for row in rows)
    assert Image.open(tmp_path / "out/edit_masked.png").size == (160, 96)  # a photograph keeps its shape
    assert not (tmp_path / "out/work").exists()


def test_a_stage_is_measured(tmp_path: Path):
    hold = "held = bytearray(300 * 2**20); held[::4096] = held[::4096]"
    measure = f"print('row', measure_stage('a stage', ['-c', {hold!r}], {str(tmp_path)!r}, None).host_gb)"
    # In a small process, as the rehearsal is: a child begins with the memory of its parent.
    script = f"from scripts.rehearse.measured import measure_stage; {measure}"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 0.3 < float(said.rpartition("row ")[2]) < 0.4


def test_a_failed_stage_stops_it(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the stage 'a stage' ended with status 3"):
        measure_stage("a stage", ["-c", "raise SystemExit(3)"], tmp_path, None)


def test_the_table_says_what_is_broken():
    rows = [Row("one", 1.0, 2.0, None), Row("two", 60.0, 25.0, 11.2, "at most 20 GB", False)]
    assert table(rows).splitlines()[2:] == [
        "| one | 1 | 2.0 |  |  |  |",
        "| two | 60 | 25.0 | 11.2 | at most 20 GB | **no** |",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{here}"], "exists already"),
        (["{here}/new", "--steps=0"], "--steps is 0, expected at least 1"),
        (["{here}/new", "--images={here}/none"], "is no folder"),
    ],
)
def test_bad_input_is_told(words: list[str], message: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=message):
        main([word.format(here=tmp_path) for word in words])
    assert not (tmp_path / "new").exists()
