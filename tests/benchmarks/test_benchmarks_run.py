"""The benchmarks run, and their sides agree: no times here, so that they never rot and never flicker."""

import pytest

from benchmarks import run

WORKLOADS = [
    "windowed",
    "order",
    "sliding",
    "stateless",
    "words",
    "async_calls",
    "epochs",
    "savepoints",
    "guarantees",
    "metrics",
    "start",
    "explain",
    "latency",
    "versions",
]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_runs_and_its_sides_agree(workload, tmp_path, capsys):
    """Unequal outputs, or a process that fails, end the run with SystemExit."""
    run.main([workload, "--quick", "--cache", str(tmp_path)])

    assert capsys.readouterr().out
