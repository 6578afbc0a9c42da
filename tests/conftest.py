"""Fixtures of general use. What only one folder needs lives in that folder's conftest.py."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Fresh examples in each run, also where CI=true (there Hypothesis by itself repeats the same ones for ever). A failure
# prints the blob that repeats it. No deadline: a test is slow when the machine is busy, and that proves nothing.
settings.register_profile("house", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("house")

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that. Tests send it to theirs.
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


# Where Python is told to write no bytecode beside the sources, it goes to pytest's own cache: each process that a test
# starts would compile the package anew, which takes longer than all else that it does.
if sys.dont_write_bytecode and sys.pycache_prefix is None:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests said with ``record_property("said", ...)``: seeds, and what was counted."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        said = [str(what) for name, what in report.user_properties if name == "said"]
        if said and report.when == "call":
            terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {'; '.join(said)}")
