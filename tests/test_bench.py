"""`python -m scripts.bench_train_step` as a user runs it. No time is asserted: machines differ, and CI's are shared."""

import json
import subprocess

import pytest

from scripts.bench.choices import OPTIONS, generator_dtype
from tests.processes import run
from train.methods.turboedit.config import GeneratorConfig

SMALL = ("--device=cpu", "--batch=2", "--steps=2", "--block=1", "--workers=0")


def bench(*options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "scripts.bench_train_step", *SMALL, *options, status=status)


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(
            ("--precision=bf16", "--cached_prompts=true", "--gradient_checkpointing=true"), marks=pytest.mark.long
        ),
        pytest.param(("--precision=bf16", "--generator_dtype=float16", "--adversary=true"), marks=pytest.mark.long),
    ],
    ids=["fp32", "bf16, cached prompts, checkpointing", "bf16, frozen models in float16, an adversary"],
)
def test_the_last_line_is_the_results(options: tuple[str, ...]):
    done = bench(*options)
    named = [option.removeprefix("--generator_dtype=") for option in options if "generator_dtype" in option]
    (frozen,) = named or ["bfloat16" if options else "float32"]
    assert f"frozen models in {frozen}\n" in done.stdout
    results = {result["name"]: result for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert set(results) == {"train_step_overhead", "train_step_samples_per_sec", "train_step_peak_memory"}
    for result in results.values():
        assert set(result) == {"name", "value", "unit", "reference", "ratio"}
        assert result["value"] > 0
    for name in ("train_step_overhead", "train_step_samples_per_sec"):
        assert results[name]["ratio"] == pytest.approx(results[name]["value"] / results[name]["reference"], rel=1e-2)


def test_each_term_is_timed_beside_the_plain_step():
    results = json.loads(bench("--terms=true").stdout.splitlines()[-1])["results"]
    names = [result["name"].removeprefix("train_step_with_") for result in results]
    expected = "own_share known_noise moments spectrum timestep_weights perceptual_features perceptual_lpips"
    assert names == [*expected.split(), "known_noise_and_score"]
    assert all(result["ratio"] > 0 and result["reference"] == results[0]["reference"] for result in results)


def test_frozen_models_have_the_default_of_the_trainings():
    assert generator_dtype("auto", "bf16", "cuda") == GeneratorConfig().dtype == "float16"
    assert generator_dtype("auto", "bf16", "cpu") == "bfloat16"
    assert {generator_dtype("auto", "no", kind) for kind in ("cpu", "cuda")} == {"float32"}
    assert generator_dtype("float32", "bf16", "cuda") == "float32"
    assert "--generator.dtype=float16" in OPTIONS["bf16"]


@pytest.mark.parametrize(
    ("options", "cure"),
    [(("--size=sdxl",), "--cached_prompts true"), (("--steps=3", "--block=2"), "multiple of block")],
)
def test_options_that_do_not_fit_name_the_cure(options: tuple[str, ...], cure: str):
    assert cure in bench(*options, status=1).stderr
