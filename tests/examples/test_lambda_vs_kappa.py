"""The comparison of examples/lambda_vs_kappa.py, played small: when each system is wrong, and when right again."""

import asyncio
import contextlib
import importlib
import io
import json
import sys
from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from tests.examples.conftest import ROOT

EXAMPLE = "examples/lambda_vs_kappa.py"
PAGE = ROOT / "docs/lambda-vs-kappa.md"
RECORDS, TICK = 8_000, 100  # all, and of each tick


@pytest.fixture(scope="module")
def modules():
    """The example and its scene, imported as Python finds them when the script is run."""
    names = ("lambda_vs_kappa", "lambda_vs_kappa_scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield tuple(importlib.import_module(name) for name in names)
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def played(modules, tmp_path_factory):
    """The samples, and what was printed."""
    example, scene = modules
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        samples = asyncio.run(example.story(tmp_path_factory.mktemp("data"), RECORDS))
    return samples, printed.getvalue() + scene.table(samples)


def by_tick(scene, samples):
    """Return the samples of ticks, and those of nights."""
    nights = samples[scene.TICKS :: scene.TICKS + 1]
    assert len(nights) == scene.DAYS and all(one.at.endswith("night") for one in nights)
    return [one for one in samples if one not in nights], nights


def test_kappa_is_wrong_only_while_it_is_down_or_its_rule_is_wrong_and_then_exactly_right_again(modules, played):
    _, scene = modules
    ticks, nights = by_tick(scene, played[0])

    down = range(scene.CRASH, scene.RESTART)
    buggy = range(scene.HALF_POINTS, scene.PROMOTED)
    assert all(ticks[tick].kappa_error for tick in down)
    assert ticks[scene.MENDED].kappa_error > 1
    wrong = [tick for tick, one in enumerate(ticks) if one.kappa_error]
    assert set(wrong) <= {*down, *buggy}
    assert not any(one.kappa_error for one in nights)
    assert len(ticks) == scene.DAYS * scene.TICKS


def test_lambda_is_wrong_in_the_gaps_and_exactly_right_behind_each_batch_run(modules, played):
    _, scene = modules
    ticks, nights = by_tick(scene, played[0])

    assert not any(one.lambda_error for one in nights)
    assert all(one.lambda_error for tick, one in enumerate(ticks) if scene.ends_day(tick))
    before, behind = ticks[scene.CRASH].lambda_error, ticks[scene.RESTART].lambda_error
    assert before + TICK / 2 < behind < before + TICK  # those that passed, of the records that count twice
    assert ticks[2 * scene.TICKS - 1].lambda_error > before + TICK / 2  # until the night
    assert ticks[scene.PROMOTED].lambda_error  # what the wrong rule has let pass stays until the night, too


def test_both_handle_again_what_a_crash_left_uncommitted_and_the_bill_adds_up(modules, played):
    _, scene = modules
    last = played[0][-1]

    batches = sum(day * RECORDS // scene.DAYS for day in range(1, scene.DAYS + 1))
    assert last.lambda_records == RECORDS + TICK + batches
    replayed = TICK * (scene.PROMOTED + 1)  # by the second version, up to where it is served; the first ends there
    assert last.kappa_records == RECORDS + TICK + replayed
    assert f", {TICK} it counted twice" in played[1]
    assert last.lambda_seconds > 0 and last.kappa_seconds > 0


def test_a_speed_layer_that_forgets_nothing_is_right_until_something_dies(modules, data_dir, monkeypatch, capsys):
    """So what the page says of late records is a choice of this speed layer, not of the architecture."""
    example, scene = modules
    monkeypatch.setattr(example.Lambda, "LATE_MAX", 2 * scene.DAY)

    ticks, _ = by_tick(scene, asyncio.run(example.story(data_dir, 1_600)))

    wrong = [tick for tick, one in enumerate(ticks) if one.lambda_error]
    assert not [tick for tick in wrong if tick <= scene.CRASH or tick >= 3 * scene.TICKS]
    assert scene.RESTART in wrong
    assert "Speed layer: 0 records came too late" in capsys.readouterr().out


def test_a_bounded_run_of_the_pipeline_equals_the_live_view(played):
    assert f"Bounded run: {RECORDS:,} records" in played[1]
    assert "rows equal the live view." in played[1]


def test_a_bounded_run_with_another_rule_is_told_apart(modules, data_dir, monkeypatch, capsys):
    example, _ = modules
    monkeypatch.setattr(example, "compare_bounded", compare_with_the_wrong_rule(example))
    asyncio.run(example.story(data_dir, 8_000))
    assert "rows DIFFER FROM the live view." in capsys.readouterr().out


def compare_with_the_wrong_rule(example):
    compare = example.compare_bounded

    async def run(data_dir, log, live):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(example, "mended_rule", example.rounding_rule)
            await compare(data_dir, log, live)

    return run


def test_the_truth_is_what_one_counts_by_hand(modules):
    _, scene = modules
    lines = [
        json.dumps({"quiz_id": quiz, "score": score, "submitted_at": scene.FIRST_DAY + at}).encode()
        for quiz, score, at in [
            ("a", 50, 0),
            ("a", 49.5, 1),
            ("a", 50.5, scene.HOUR - 1),
            ("a", 50, scene.HOUR),
            ("b", 0, 2),
        ]
    ]
    first = scene.FIRST_DAY
    assert scene.true_counts(lines) == {("a", first): 2, ("a", first + scene.HOUR): 1}
    assert scene.error(Counter({("a", 1): 3, ("b", 1): 1}), Counter({("a", 1): 1, ("c", 1): 1})) == 4


def test_the_picture_shows_the_figures_that_were_printed(modules, played, tmp_path):
    _, scene = modules
    samples, printed = played
    figure = scene.draw(samples, tmp_path / "picture.svg")
    curves = [
        {
            line.get_label(): list(line.get_ydata())
            for line in axes.get_lines()
            if line.get_label() in ("Lambda", "Kappa")
        }
        for axes in figure.axes
    ]
    errors, records, seconds = curves
    told = [row.strip("| ").split(" | ") for row in printed.splitlines() if row.startswith("| day")]
    assert len(told) == len([one for one in samples if one.event]) > 10
    at = {one.at: place for place, one in enumerate(samples)}
    for when, _, *figures in told:
        shown = [curve[system][at[when]] for curve in (errors, records) for system in ("Lambda", "Kappa")]
        assert [f"{value:,}" for value in shown] == figures
    assert f"Lambda {seconds['Lambda'][-1]:.2f}, Kappa {seconds['Kappa'][-1]:.2f}." in printed
    assert all(len(curve) == len(samples) for panel in curves for curve in panel.values())

    drawn = (tmp_path / "picture.svg").read_bytes()
    assert ET.fromstring(drawn).tag.endswith("svg") and len(drawn) < 100_000
    scene.draw(samples, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn


def test_the_page_has_the_errors_and_records_of_the_run_that_it_names(python, tmp_path):
    run = python(EXAMPLE, "--picture", tmp_path / "picture.svg")
    assert run.returncode == 0, run.stderr

    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in run.stdout.splitlines() if line.startswith(("|", "Speed layer"))]
    assert len(rows) > 15
    assert [row for row in rows if row not in page] == []
    assert (tmp_path / "picture.svg").exists() and "(lambda_vs_kappa.svg)" in page
