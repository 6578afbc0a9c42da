"""The server of processes, one for each worker, and a seed for each test."""

import os
import random

import pytest

from tests.crash.processes import Server


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


@pytest.fixture
def say(record_property):
    """Put a line into the summary of the tests; see tests/conftest.py."""
    return lambda what: record_property("said", what)


@pytest.fixture
def chance(say):
    """Fresh in each run; CRASH_SEED=n repeats one, up to the timing of processes."""
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().getrandbits(32))
    say(f"CRASH_SEED={seed}")
    return random.Random(seed)
