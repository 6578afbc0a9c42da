"""The states of a region and of a job: the table, exhaustively."""

from itertools import combinations_with_replacement, product
from pathlib import Path

import pytest

from streamactors.job import states
from streamactors.job.states import TRANSITIONS, Life, State, job_state, said

FINAL = {State.ENDED, State.FINISHED, State.FAILED}
PAGE = Path(__file__).parents[2] / "docs" / "supervision.md"


def at(state):
    return Life("r", since_ms=1, state=state)


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_a_transition_is_made_if_the_table_has_it_and_is_a_bug_if_not(before, after):
    life = at(before)
    if after in TRANSITIONS[before]:
        life.to(after, 7)
        assert (life.state, life.since_ms) == (after, 7)
    else:
        with pytest.raises(AssertionError, match=f"region r can't go from {before} to {after}"):
            life.to(after, 7)
        assert (life.state, life.since_ms) == (before, 1)


def test_every_state_is_reached_from_the_first_and_comes_to_an_end():
    def reached(start):
        found = {start}
        while more := {after for state in found for after in TRANSITIONS[state]} - found:
            found |= more
        return found

    assert reached(State.STARTING) == set(State)
    assert all(reached(state) & FINAL for state in State)
    assert {state for state in State if state.is_final} == FINAL


def test_whatever_is_no_end_can_be_stopped_and_can_fail():
    for state in set(State) - FINAL:
        assert State.FAILED in TRANSITIONS[state]
        assert state is State.STOPPING or State.STOPPING in TRANSITIONS[state]


def test_the_last_error_stays_when_the_region_runs_again():
    life = at(State.RUNNING)
    life.to(State.RESTARTING, 5, ConnectionError("the service\nis away"))
    life.to(State.RUNNING, 9)
    assert (life.error, life.error_ms, life.since_ms) == ("ConnectionError: the service is away", 5, 9)
    assert said(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("regions", "job"),
    [
        ([], "starting"),
        (["starting"], "running"),
        (["running", "ended"], "running"),
        (["running", "restarting"], "restarting"),
        (["restarting", "waiting"], "waiting"),
        (["running", "draining"], "draining"),
        (["draining", "stopping"], "stopping"),
        (["running", "failed"], "stopping"),
        (["ended", "failed"], "failed"),
        (["ended", "finished"], "ended"),
        (["finished", "finished"], "finished"),
    ],
)
def test_a_job_is_what_its_regions_are(regions, job):
    assert job_state(map(State, regions)) == job


@pytest.mark.parametrize("regions", list(combinations_with_replacement(State, 3)))
def test_a_job_is_over_exactly_when_all_its_regions_are(regions):
    job = job_state(regions)
    assert job.is_final == all(state.is_final for state in regions)
    if State.FAILED in regions:
        assert job is (State.FAILED if job.is_final else State.STOPPING)


def test_the_table_in_the_header_is_the_table():
    lines = states.__doc__.splitlines()
    column = next(line.index("goes on to") for line in lines if "goes on to" in line)
    rows, last = {}, None
    for line in lines:
        words = line.split()
        if line[4:5].strip() and words[0] in set(State):
            last = words[0]
        if last is not None and line[column - 3 : column] == "   ":
            rows.setdefault(last, set()).update(line[column:].split())
    assert rows == table(nothing="nothing")


def test_the_table_on_the_page_is_the_table():
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    rows = {cells[0].strip("`"): set(cells[-1].replace(",", "").split()) for cells in lines if len(cells) == 3}
    assert {state: rows[state] for state in State} == table(nothing="nothing")


def table(nothing):
    return {str(state): set(map(str, after)) or {nothing} for state, after in TRANSITIONS.items()}
