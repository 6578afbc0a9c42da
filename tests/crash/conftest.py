"""The server of processes, one for each worker, and a seed for each test, which is printed when it fails."""

import os
import random

import pytest

from tests.crash.processes import Server


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


@pytest.fixture
def chance():
    """Fresh in each run; CRASH_SEED=n repeats one, up to the timing of processes."""
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().getrandbits(32))
    print(f"CRASH_SEED={seed}")
    return random.Random(seed)
