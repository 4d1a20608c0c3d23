"""Published figures: typed in our units, their traps as footnotes, and contradictions computed, not listed."""

import math

import numpy as np
import pytest
import yaml

from eval.metrics.pixels import MAX_PSNR
from eval.published.rows import (
    _DATA,
    PublishedRow,
    comparison_rows,
    contradiction,
    contradicts,
    least_psnr,
    published_rows,
)


def row(method: str, source: str) -> PublishedRow:
    (found,) = [r for r in published_rows() if r.method == method and source in r.sources]
    return found


def test_rows_are_in_our_units():
    ours = row("turboedit", "TurboEdit, table 1")
    expected = {
        "psnr": 29.52,
        "lpips": 0.04474,
        "mse": 0.002608,
        "ssim": 0.9159,
        "clip_whole": 25.05,
        "clip_edited": 22.34,
    }
    assert ours.values == pytest.approx(expected)
    assert (ours.steps, ours.prompts, ours.mask) == (4, "short", "unsaid")
    assert [(t.device, t.invert, t.edit) for t in ours.timings] == [("H100", 0.668, 0.508)]
    assert row("direct_p2p", "PnP Inversion, main table").values["structure"] == pytest.approx(0.01165)
    kid = [r.values["kid"] for r in published_rows() if "TurboEdit, table 2" in r.sources and r.method == "turboedit"]
    assert kid == pytest.approx([45.1e-4, 10.5e-4, 4.33e-4])


def test_every_value_lies_where_its_unit_allows():
    ranges = {"structure": (0, 0.1), "psnr": (10, 40), "lpips": (0, 0.6), "mse": (0, 0.1), "ssim": (0.5, 1)}
    ranges |= {"clip_whole": (20, 30), "clip_edited": (18, 25), "preference": (0, 1)}
    for found in published_rows():
        for measure, value in found.values.items():
            low, high = ranges.get(measure, (0, 100))
            assert low <= value <= high, (found.title, measure, value)


def test_the_file_has_no_row_twice_and_no_note_that_nobody_needs():
    rows = [(r.method, r.sources, r.steps) for r in published_rows()]
    assert len(set(rows)) == len(rows)
    file = yaml.safe_load(_DATA.read_text("utf-8"))
    used = {note for t in file["tables"] for part in (t, *t["rows"]) for note in part.get("notes", [])}
    assert used == set(file["notes"])
    assert {r.mask for r in published_rows()} <= {"none", "automatic", "given", "unsaid"}


def test_the_contradictions_of_swiftedits_tables_are_found_and_no_others():
    found = {
        (r.title, r.sources[0]) for r in published_rows() if contradicts(r.values.get("psnr"), r.values.get("mse"))
    }
    few_step = (
        "ReNoise (SDXL-Turbo)",
        "TurboEdit (Deutch et al.)",
        "ICD (SD 1.5)",
        "SwiftEdit",
        "SwiftEdit, given mask",
    )
    edits = {(title, "SwiftEdit, table 6") for title in few_step}
    parts = ("", " without stage 1", " without stage 2", " without IP-Adapter")
    assert found == edits | {(f"SwiftEdit{part}", "SwiftEdit, table 2") for part in parts}


@pytest.mark.parametrize("seed", range(20))
def test_true_means_never_contradict_and_wrong_units_do(seed):
    errors = 10 ** np.random.default_rng(seed).uniform(-6, -0.5, 50)
    psnr, mse = float(np.mean(-10 * np.log10(errors))), float(errors.mean())
    assert not contradicts(psnr, mse)
    # As wrong as the spread of the errors hides, and a little more.
    factor = 10 ** ((psnr - least_psnr(mse)) / 10)
    assert contradicts(psnr, mse / factor / 1.1)
    same = float(errors[0])
    assert contradicts(-10 * math.log10(same), same / 10)


def test_equal_pictures_contradict_nothing():
    assert not contradicts(MAX_PSNR, 0.0)
    # One equal picture counts with MAX_PSNR, the other has 20 dB.
    assert not contradicts((MAX_PSNR + 20) / 2, 0.005)
    assert contradicts(MAX_PSNR / 2, 0.0)


@pytest.mark.parametrize(("psnr", "mse"), [(None, 0.1), (20.0, None), (math.nan, 0.1), (20.0, math.nan), (None, None)])
def test_missing_figures_contradict_nothing(psnr, mse):
    assert not contradicts(psnr, mse) and contradiction(psnr, mse) is None


def test_a_contradiction_is_said_with_its_figures():
    said = contradiction(22.43, 9.48e-4)
    assert said is not None and "9.48×10⁻⁴" in said and "30.2 dB" in said and "22.43 dB" in said


def test_tables_that_print_the_same_figures_are_one_line():
    lines = comparison_rows(instructive=False)
    (line,) = [r for r in lines if r.method == "null_text_p2p"]
    assert line.sources == ("PnP Inversion, main table", "TurboEdit, table 1")
    assert line.values["structure"] == pytest.approx(0.01344) and line.mask == "automatic"
    assert [(t.device, t.source) for t in line.timings] == [
        ("A40", "InfEdit, table 1"),
        ("H100", "TurboEdit, table 1"),
        ("A100", "SwiftEdit, table 6"),
    ]
    assert len({r.method for r in lines}) == len(lines) - 1  # ChordEdit's paper and its repository differ


def test_two_sets_of_figures_stay_two_lines_that_name_each_other():
    first, second = [r for r in comparison_rows(instructive=True) if r.method == "instruct_pix2pix"]
    assert (first.values["psnr"], second.values["psnr"]) == (20.58, 20.82)
    assert any("SwiftEdit, table 6" in note for note in first.notes)
    assert any("TurboEdit, table 3" in note for note in second.notes)


def test_chordedits_paper_and_its_repository_are_two_lines():
    paper, rerun = [r for r in comparison_rows(instructive=False) if r.method == "chordedit"]
    assert (paper.values["clip_whole"], rerun.values["clip_whole"]) == (25.58, 24.82)
    assert any("its repository" in note for note in paper.notes) and any("0.8 more" in note for note in rerun.notes)
    assert "25.33 dB" in " ".join(row("flashedit", "second hand, one step").notes)


def test_the_traps_are_footnotes():
    def notes(method: str) -> str:
        return " ".join(next(r for r in comparison_rows(instructive=False) if r.method == method).notes)

    assert "without local blend" in notes("stylediffusion_p2p") and "without local blend" not in notes("npi_p2p")
    for words in ("zeros", "JPEG", "A800", "RTX 3090"):
        assert words in notes("direct_p2p")
    assert "Contradiction" in notes("swiftedit") and "21.16" in notes("swiftedit")
    assert "summaries" in notes("flashin")


def test_methods_with_published_figures_only_are_there():
    names = {r.method for r in published_rows() if r.protocol in ("user_study", "timing")}
    assert {"glide", "text2live", "vqgan_clip"} <= names
    compared = {r.method for instructive in (False, True) for r in comparison_rows(instructive)}
    assert not compared & {"glide", "text2live", "vqgan_clip"}
