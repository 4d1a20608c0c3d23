"""`python -m scripts.bench_data` as a user runs it. No time is asserted: machines differ, and CI's are shared."""

import json
import subprocess

import pytest

from tests.processes import run

SMALL = (
    "--samples=512",
    "--prompt_samples=256",
    "--flat_samples=2000",
    "--pictures=3",
    "--rounds=1",
    "--workers=1",
    "--batch=32",
)


def bench(*options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "scripts.bench_data", *SMALL, *options, status=status)


def test_the_last_line_is_the_results():
    done = bench()
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    pictures = [
        f"{name}_{size}" for name in ("decode_and_resize", "caption_stage") for size in ("640x480", "1600x1200")
    ]
    assert set(results) >= {"loader_vs_webdataset", "loader_vs_webdataset_prompts", *pictures}
    for result in results.values():
        assert set(result) == {"name", "value", "unit", "reference", "ratio"}
        assert result["value"] > 0
        if result["reference"] is not None:
            assert result["ratio"] == pytest.approx(result["value"] / result["reference"], rel=1e-2)
    for name in ("loader_bytes_read", "loader_bytes_read_prompts"):
        if name in results:  # not every system counts them
            assert 1 <= results[name]["ratio"] <= 1.05


@pytest.mark.parametrize(
    ("options", "cure"),
    [(("--samples=10",), "two batches of 32"), (("--workers=3",), "add samples")],
)
def test_options_that_do_not_fit_name_the_cure(options: tuple[str, ...], cure: str):
    assert cure in bench(*options, status=1).stderr
