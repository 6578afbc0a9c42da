"""Settings from flags, variables, the program and defaults; and the page that lists them."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.core.connectors import Guarantee
from streamactors.core.errors import UsageError
from streamactors.core.sizes import shown_size, size_bytes
from streamactors.job.options import FROM_INSIDE_ONLY, OPTIONS, from_flags, from_variables, misspelt, paths
from streamactors.job.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
BY_PATH = {option.path: option for option in OPTIONS}

SAMPLES = {
    "checkpoint_every_ms": ("1.5s", 1_500),
    "guarantee": ("at-least-once", Guarantee.AT_LEAST_ONCE),
    "quota_bytes": ("64MiB", 64 * 2**20),
    "restarts.scope": ("all", "all"),
    "restarts.restarts_max": ("0", 0),
    "restarts.window": ("2min", 120.0),
    "restarts.backoff_first": ("50ms", 0.05),
    "restarts.backoff_max": ("1h", 3_600.0),
    "watchdog_ms": ("0", 0),
    "await_ms": ("off", 0),
    "batch_records": ("17", 17),
}
"""For each option a text, and the value that it stands for; none is the default."""


def test_every_field_can_be_set_from_outside_or_says_why_not():
    assert paths() == BY_PATH.keys() | FROM_INSIDE_ONLY.keys()
    assert BY_PATH.keys() == SAMPLES.keys()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_flag_before_variable_before_program_before_default(option):
    text, value = SAMPLES[option.path]
    default, other = option.of(Settings()), option.default
    assert value != default

    program = option.apply(Settings(), text, "here")
    assert option.of(program) == value
    assert option.of(from_variables(Settings(), {option.variable: text})) == value
    assert option.of(from_variables(program, {option.variable: other})) == default
    assert (
        option.of(from_flags(from_variables(Settings(), {option.variable: other}), {option.parameter: text})) == value
    )
    assert option.of(from_flags(from_variables(program, {option.variable: "  "}), {option.parameter: None})) == value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_the_default_as_it_is_written_is_the_default(option):
    assert option.apply(Settings(), option.default, "here") == Settings()


@given(st.sampled_from(OPTIONS), st.text(max_size=8))
def test_whatever_is_given_is_taken_or_refused_by_name(option, text):
    settings, message = None, ""
    try:
        settings = from_variables(Settings(), {option.variable: text})
    except UsageError as error:
        message = str(error)
    if settings is None:
        assert message.startswith(f"{option.variable}={text}: ")
    else:  # nothing but that option has changed
        assert from_variables(settings, {option.variable: option.default}) == Settings()


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("checkpoint_every_ms", "soon", "'soon' is not a duration"),
        ("checkpoint_every_ms", "0", "is below 1"),
        ("guarantee", "twice", "'twice' is none of exactly-once"),
        ("quota_bytes", "10", "'10' is not a size"),
        ("quota_bytes", "0B", "leaves no room"),
        ("restarts.restarts_max", "-1", "'-1' is not a whole number"),
        ("restarts.scope", "some", "'some' is none of region, all, none"),
        ("watchdog_ms", "-5ms", "'-5ms' is not a duration"),
        ("batch_records", "0", "is below 1"),
        ("batch_records", "٣", "is not a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_name_of_who_said_it(path, text, message):
    option = BY_PATH[path]
    with pytest.raises(UsageError, match=message) as refusal:
        from_variables(Settings(), {option.variable: text})
    assert str(refusal.value).startswith(f"{option.variable}={text}: ")
    with pytest.raises(UsageError, match=message) as refusal:
        from_flags(Settings(), {option.parameter: text})
    assert str(refusal.value).startswith(f"{option.flag} {text}: ")


def test_a_variable_that_is_nearly_ours_is_told_others_are_not():
    given = {"STREAMACTORS_CHECKPOINT_EVRY": "1s", "STREAMACTORS_SERVICE_HOST": "10.0.0.1", "STREAMACTORS_DATA": "d"}
    assert misspelt(given) == {"STREAMACTORS_CHECKPOINT_EVRY": "STREAMACTORS_CHECKPOINT_EVERY"}


def test_a_program_of_ones_own_asks_for_variables(monkeypatch):
    monkeypatch.setenv("STREAMACTORS_QUOTA", "1GB")
    assert sa.Settings().quota_bytes is None
    assert sa.Settings.from_environment().quota_bytes == 10**9
    assert sa.Settings.from_environment(sa.Settings(batch_records=3)).batch_records == 3


# Through the command line. --------------------------------------------------------------------------------------------

PIPELINE = """
import streamactors as sa

settings = sa.Settings(checkpoint_every_ms=7_000, watchdog_ms=0)
p = sa.Pipeline("p")
p.items([1, 2]).key_by(None).count().to_view("v")
"""


@pytest.fixture
def ran(tmp_path, data_dir, spawn, monkeypatch):
    """Run the pipeline; return exit code and standard error."""
    path = tmp_path / "p.py"
    path.write_text(PIPELINE)

    def run(*arguments, data=data_dir, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        place = ["--data", data] if data is not None else []
        process = spawn("run", path, *place, "--until-end", "--no-progress", *arguments)
        _, err = process.communicate()
        return process.returncode, err.decode()

    return run


def test_the_files_settings_count_and_variables_and_flags_come_before_them(ran):
    assert "checkpoint every 7000 ms" in ran()[1]
    assert "checkpoint every 300 ms" in ran(STREAMACTORS_CHECKPOINT_EVERY="300ms")[1]
    assert "checkpoint every 20 ms" in ran("--checkpoint-every", "20ms")[1]


def test_a_variable_names_the_data_folder(ran, data_dir):
    assert ran(data=None, STREAMACTORS_DATA=str(data_dir))[0] == 0
    assert (data_dir / "jobs" / "p").is_dir()


def test_a_wrong_variable_ends_the_run_before_the_file_runs(ran, data_dir):
    code, err = ran(STREAMACTORS_QUOTA="much")
    assert code == 2 and err.startswith("streamactors: STREAMACTORS_QUOTA=much: 'much' is not a size")
    assert not (data_dir / "jobs").exists()


def test_a_misspelt_variable_is_told_and_the_run_goes_on(ran):
    code, err = ran(STREAMACTORS_QOUTA="1GB")
    assert code == 0 and "STREAMACTORS_QOUTA is no setting and changes nothing. Was STREAMACTORS_QUOTA meant?" in err


# Sizes. ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("10GB", 10**10), ("1.5 kB", 1_500), ("64MiB", 64 * 2**20), ("2tib", 2 * 2**40), ("1KB", 1_000)],
)
def test_a_size_is_a_number_with_a_unit(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "10", "GB", "-1GB", "1 G", "1iB", "1e3B", "٣GB", "1PB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        size_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (7_613_893, "7.61 MB"), (999_999, "1 MB"), (5 * 10**15, "5,000 TB")],
)
def test_a_size_is_shown_with_three_digits(size, text):
    assert shown_size(size) == text


# The page. ------------------------------------------------------------------------------------------------------------


def settings_table():
    lines = [
        "| field | type | unit | default | variable | flag | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for option in OPTIONS:
        kind, default = option.kind, option.of(Settings())
        of_type = type(default).__name__ if default is not None else "int or None"
        choices = f" One of {', '.join(f'`{name}`' for name in kind.choices)}." if kind.choices else ""
        cells = [f"`{option.path}`", of_type, kind.unit, f"`{option.default}`", f"`{option.variable}`"]
        lines.append("| " + " | ".join([*cells, f"`{option.flag} {kind.metavar}`", option.meaning + choices]) + " |")
    return "\n".join(lines)


def inside_table():
    lines = ["| field | why |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | {why} |" for name, why in FROM_INSIDE_ONLY.items()])


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table()), ("inside", inside_table())])
def test_the_page_lists_what_there_is(name, table):
    """STREAMACTORS_REWRITE=1 writes it anew."""
    between = re.compile(rf"(<!-- table: {name} -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("STREAMACTORS_REWRITE"):
        PAGE.write_text(text := between.sub(lambda found: f"{found[1]}{table}\n{found[3]}", text), encoding="utf-8")
    (found,) = between.finditer(text)
    assert found[2] == f"{table}\n"
