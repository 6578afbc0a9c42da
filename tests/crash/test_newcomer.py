"""What a newcomer does, with nothing in between: processes started as a shell starts them, the oracle a program."""

import subprocess
import sys
import time

import pytest

from tests.crash.processes import ROOT

pytestmark = pytest.mark.crash
SUBMISSIONS = "20000"


def test_the_example_is_killed_on_the_way_run_again_and_right(tmp_path, chance, say):
    """Also while it fills its own topic; with one partition, and nobody idle, the oracle needs no journal."""
    data = str(tmp_path / "data")
    run = [sys.executable, "-m", "streamactors", "run", "examples/quiz_counts.py", "--data", data, "--no-progress"]
    ages = [chance.uniform(0.2, 2.0) for _ in range(5)]
    for age in ages:
        command = [*run, "--checkpoint-every", "20ms", "--", SUBMISSIONS]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as job:
            time.sleep(age)
            job.kill()
        assert job.returncode == -9
    say("killed at the age of " + ", ".join(f"{age:.2f} s" for age in ages))
    subprocess.run([*run, "--until-end", "--", SUBMISSIONS], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    for flags in ([], ["--without-journal"]):
        oracle = [sys.executable, "tests/oracle/quiz_oracle.py", data, *flags]
        told = subprocess.run(oracle, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        assert told.stdout == "0 differences\n"
