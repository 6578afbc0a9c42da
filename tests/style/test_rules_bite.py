"""A rule that never fails proves nothing: each is shown code that breaks it, and code that does not."""

from pathlib import Path

import pytest

from tests.style import rules
from tests.style.sources import Module


@pytest.fixture
def write(tmp_path: Path):
    for package in ("core", "durable", "engine", "flow", "job"):
        (tmp_path / "streamactors" / package).mkdir(parents=True)
    (tmp_path / "connectors").mkdir()

    def write_module(place: str, text: str) -> Module:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return Module(path, tmp_path)

    return write_module


@pytest.mark.parametrize(
    "line",
    [
        "import streamactors.job.runner",
        "from streamactors.job.runner import run",
        "from streamactors.job import runner",
        "from streamactors import job",
        "from ..job import runner",
        "from ..job.runner import run",
        "from .. import job",
        "from .. import run",
        "from streamactors import run",
        "import streamactors",
        "def late():\n    from ..job import runner",
        "import importlib\nimportlib.import_module('streamactors.job.runner')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from streamactors.job import runner",
    ],
)
def test_an_import_from_below_is_found_in_whatever_form(write, line):
    assert list(rules.broken_import_direction(write("streamactors/flow/windows.py", line)))


@pytest.mark.parametrize(
    "line",
    [
        "import asyncio",
        "from streamactors.core.batch import Batch",
        "from ..core import batch",
        "from ..durable.state import KeyedState",
        "from . import operator",
        "from .operator import Operator",
        "from streamactors.flow.operator import Operator",
    ],
)
def test_an_import_from_above_or_from_outside_is_free(write, line):
    assert not list(rules.broken_import_direction(write("streamactors/flow/windows.py", line)))


def test_a_relative_import_in_a_package_file_starts_at_that_package(write):
    assert not list(rules.broken_import_direction(write("streamactors/flow/__init__.py", "from .windows import x")))
    assert list(rules.broken_import_direction(write("streamactors/flow/__init__.py", "from ..job import x")))


def test_core_knows_no_event_loop_and_engine_no_disk(write):
    assert list(rules.broken_import_direction(write("streamactors/core/a.py", "import asyncio")))
    assert list(rules.broken_import_direction(write("streamactors/engine/a.py", "from ..durable import files")))
    assert not list(rules.broken_import_direction(write("streamactors/engine/b.py", "import asyncio")))


def test_a_connector_is_held_to_the_core(write):
    assert not list(
        rules.broken_connector_import(write("connectors/csv.py", "from streamactors.core.ports import Disk"))
    )
    assert list(rules.broken_connector_import(write("connectors/csv.py", "from streamactors.durable import log")))
    assert list(rules.broken_connector_import(write("connectors/csv.py", "from streamactors import Batch")))
    assert list(rules.broken_connector_import(write("connectors/csv.py", "from . import kafka")))
    assert list(rules.broken_connector_import(write("connectors/csv.py", "from connectors.kafka import x")))


def test_the_built_in_log_connector_may_know_what_survives(write):
    assert not list(rules.broken_connector_import(write("connectors/log.py", "from streamactors.durable import log")))
    assert not list(rules.broken_connector_import(write("connectors/log/a.py", "from .b import x")))
    assert list(rules.broken_connector_import(write("connectors/log.py", "from streamactors.flow import x")))


@pytest.mark.parametrize(
    "text",
    [
        '"""Doc."""\nfrom .core import Batch\n__all__ = []',
        '"""Doc."""\n__all__ = ["Batch"]',
        '"""Doc."""\ndef run(): ...',
        '"""Doc."""\nimport os\nos.environ["X"] = "1"',
    ],
)
def test_a_root_that_does_something_is_refused(write, text):
    assert list(rules.broken_root(write("streamactors/__init__.py", text)))


def test_a_root_that_re_exports_is_free(write):
    text = '"""Doc."""\nfrom .core.batch import Batch\n__version__ = "1"\n__all__ = ["Batch", "__version__"]'
    assert not list(rules.broken_root(write("streamactors/__init__.py", text)))


def test_the_sizes_are_counted_to_the_line(write):
    def file_of(lines: int) -> Module:
        return write("streamactors/flow/long.py", "x = 1\n" * lines)

    def function_of(lines: int) -> Module:
        return write("streamactors/flow/long.py", "def f():\n" + "    x = 1\n" * (lines - 1))

    assert not list(rules.broken_size(file_of(500)))
    assert list(rules.broken_size(file_of(501)))
    assert not list(rules.broken_size(function_of(60)))
    assert list(rules.broken_size(function_of(61)))


@pytest.mark.parametrize("line", ["import pickle", "from shelve import open", "eval('1')", "run = exec"])
def test_code_in_data_is_found(write, line):
    assert list(rules.broken_code_in_data(write("streamactors/flow/a.py", line)))


def test_a_word_in_a_text_is_not_code_in_data(write):
    assert not list(rules.broken_code_in_data(write("streamactors/flow/a.py", '"""No pickle, no eval()."""')))


def test_only_a_documented_contract_excuses_a_missing_docstring(write):
    text = '"""Doc."""\nclass A:\n    """Doc."""\n    def on_batch(self): ...\n    def other(self): ...\n'
    found = list(rules.broken_docstring(write("streamactors/flow/a.py", text), {"on_batch"}))
    assert len(found) == 1
    assert "A.other" in found[0]
