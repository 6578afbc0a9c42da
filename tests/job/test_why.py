"""What a region says when nothing moves: facts in, sentences out. This is the list of all of them."""

from datetime import UTC, datetime

import pytest

from streamactors.job.states import State
from streamactors.job.why import CallFacts, Facts, PartitionFacts, StageFacts, instant, lasted, reasons


def at(text):
    return int(datetime.fromisoformat(f"2026-05-01T{text}").replace(tzinfo=UTC).timestamp() * 1_000)


WINDOW = ("quiz-counts/window", (at("10:00"), at("10:10")))


def facts(**known):
    return Facts(**{"state": State.RUNNING, **known})


def part(number, time=None, *, quiet=None, idle_after=60_000, idle=False, left=0, disorder=0):
    reach = {} if time is None else {"reach": at(time) - disorder}
    return PartitionFacts(
        "submissions", number, 100, 100 + left, disorder=disorder, quiet=quiet, idle=idle, idle_after_ms=idle_after,
        **reach,
    )  # fmt: skip


def timed(*partitions, **known):
    return facts(timed=True, stood=40.0, partitions=partitions, windows=[WINDOW], horizon=at("10:00"), **known)


def test_a_region_that_moves_has_nothing_to_explain():
    assert reasons(facts(partitions=[part(0, left=5)], aligning=(3, 0.01, ["a"]), handed=(2, "the disk", 0.02))) == []
    assert reasons(facts(state=State.ENDED)) == reasons(facts(state=State.FINISHED)) == []


AWAY = "ConnectionError: the service is away"


@pytest.mark.parametrize(
    ("state", "known", "said"),
    [
        (State.STARTING, {}, "is being built from its last checkpoint"),
        (State.RESTARTING, {"restart_in": 3.2, "error": AWAY}, f"restarts in 3.2 s after {AWAY}"),
        (State.RESTARTING, {"error": AWAY}, f"is being built from its last checkpoint after {AWAY}"),
        (
            State.RESTARTING,
            {"restart_in": 3.2, "error": AWAY, "handed": (17, "sink counts.sqlite", 8.0)},
            f"restarts when sink counts.sqlite has answered for epoch 17, which it has had for 8.0 s after {AWAY}",
        ),
        (
            State.RESTARTING,
            {"restart_in": 3.2, "back_with": ("orders", {"users", "orders"})},
            "restarts together with orders, when orders, users has stopped",
        ),
        (
            State.RESTARTING,
            {"restart_in": 3.2, "back_with": ("orders", set()), "error": AWAY},
            f"restarts in 3.2 s together with orders after {AWAY}",
        ),
        (State.WAITING, {"room": "the disk is full"}, "waits for room, and goes on by itself: the disk is full"),
        (State.STOPPING, {}, "stops where it stands; the next start goes on from the last checkpoint"),
        (State.DRAINING, {}, "drains: reads nothing more and takes its last checkpoint"),
        (State.FAILED, {"error": AWAY}, f"gave up after {AWAY}"),
    ],
)
def test_a_region_that_does_not_run_says_what_it_waits_for(state, known, said):
    assert reasons(facts(state=state, **known)) == [said]


def test_a_sink_that_takes_nothing_is_named():
    assert reasons(facts(handed=(17, "sink counts.sqlite", 12.0))) == [
        "sink counts.sqlite has taken no record for 12 s (commit of epoch 17 pending)"
    ]
    assert reasons(facts(handed=(17, "the disk", 2.0))) == ["epoch 17 has been with the disk for 2.0 s"]
    assert reasons(facts(writing=[("counts.sqlite", 12.0), ("fast", 0.1)])) == [
        "sink counts.sqlite has taken no record for 12 s (a write is pending)"
    ]


def test_a_call_that_does_not_return_is_named_with_its_place():
    call = CallFacts("quiz/map", "enrich (quiz.py:12: await session.get(url))", 31.0, 1)
    assert reasons(facts(calls=[call])) == [
        "operator quiz/map has awaited enrich (quiz.py:12: await session.get(url)) for 31 s"
    ]
    assert reasons(facts(calls=[CallFacts("quiz/map", "enrich", 31.0, 8), CallFacts("other", "f", 0.5, 1)])) == [
        "operator quiz/map has awaited enrich for 31 s, the oldest of 8 calls"
    ]


def test_a_slow_epoch_names_the_first_stage_that_has_not_come_to_it():
    stages = [StageFacts("quiz/a", 0, 64), StageFacts("quiz/b", 4_000, 8_192), StageFacts("quiz/c", 9, 64)]
    assert reasons(facts(aligning=(18, 3.0, ["quiz/c", "quiz/b"]), stages=stages)) == [
        "epoch 18 has waited 3.0 s for quiz/b, behind 4,000 records in its mailbox"
    ]
    assert reasons(facts(aligning=(18, 3.0, ["quiz/a"]), stages=stages)) == ["epoch 18 has waited 3.0 s for quiz/a"]


def test_of_full_mailboxes_the_one_is_named_that_the_others_wait_for():
    stages = [
        StageFacts("quiz/a", 64, 64, full=True, blocked=True),
        StageFacts("quiz/b", 60, 60, full=True, per_second=300.0),
        StageFacts("quiz/c", 0, 60),
    ]
    assert reasons(facts(stages=stages)) == [
        "the mailbox of quiz/b is full (60 of 60 records): it handles 300 records/s"
    ]


def test_an_input_that_has_nothing_says_so():
    assert reasons(facts(stood=5.0, partitions=[part(0), part(1)])) == [
        "nothing to read from submissions: all 2 partitions are at their ends"
    ]
    assert reasons(facts(stood=5.0, partitions=[part(0)], follows=True)) == []


def test_an_input_that_is_there_and_does_not_come_is_named():
    assert reasons(facts(stood=5.0, partitions=[part(0), part(1, left=9)])) == [
        "waits for records of submissions/1, from offset 100 on, which are being read and decoded, for 5.0 s so far"
    ]
    full = StageFacts("quiz/b", 60, 60, full=True)
    assert len(reasons(facts(stood=5.0, partitions=[part(1, left=9)], stages=[full]))) == 1


def test_a_limit_that_holds_the_input_is_named():
    assert reasons(facts(held=True, stood=5.0, partitions=[part(0, left=9)])) == [
        "reading waits for a checkpoint: what is not durable yet has reached a limit"
    ]


def test_a_journal_that_wants_what_is_not_there_says_what():
    assert reasons(facts(follows=True, stood=9.0, wanted=("submissions", 0, 812))) == [
        "the journal that is followed wants record 812 of submissions/0, which is not there"
    ]


def test_a_window_names_the_partition_that_holds_it_back():
    said = reasons(timed(part(0, "10:30"), part(3, "10:05", quiet=40.0)))
    assert said[-1] == (
        "window 10:00 (2026-05-01T10:00Z) of quiz-counts/window waits for partition 3 of submissions, which has had "
        "nothing for 40 s and is not idle before 60 s"
    )
    assert "is never idle" in reasons(timed(part(0, "10:30"), part(3, "10:05", quiet=40.0, idle_after=None)))[-1]


def test_a_partition_that_never_had_a_record_holds_back_even_if_nobody_is_ahead():
    said = reasons(timed(part(0, "10:05"), part(3, quiet=40.0)))
    assert said[-1].endswith("has had nothing for 40 s, has never had a record and is not idle before 60 s")


def test_a_partition_that_is_behind_says_how_far():
    said = reasons(timed(part(0, "10:30"), part(3, "10:05", left=4_000)))
    assert said[-1].endswith(
        "waits for partition 3 of submissions, which has come to 2026-05-01T10:05Z, with offsets 100 to 4,100 still to "
        "read"
    )


def test_a_window_that_no_partition_has_passed_says_which_record_ends_it():
    said = reasons(timed(part(0, "10:05:12", quiet=40.0, disorder=5_000), part(1, "10:01", idle=True)))
    assert said[-1] == (
        "window 10:00 (2026-05-01T10:00Z) of quiz-counts/window waits for a record from 2026-05-01T10:10:05Z on; the "
        "newest is of 2026-05-01T10:05:12Z"
    )


def test_a_window_that_is_about_to_fire_waits_for_nobody():
    passed = Facts(State.RUNNING, timed=True, stood=9.0, partitions=[part(0, "10:30")], windows=[WINDOW],
                   horizon=at("10:10"))  # fmt: skip
    assert not any("window" in said for said in reasons(passed))


def test_when_all_are_idle_it_says_what_event_time_does():
    idle = [part(0, "10:05", quiet=90.0, idle=True), part(1, "10:01", quiet=90.0, idle=True)]
    assert reasons(timed(*idle, paced=True))[-1] == "all partitions are idle; event time goes on with the clock"
    assert reasons(timed(*idle))[-1] == (
        "all partitions are idle; event time stands until the next record; window 2026-05-01T10:00Z of "
        "quiz-counts/window stays open"
    )
    nothing = facts(timed=True, stood=90.0, partitions=[part(0, quiet=90.0, idle=True)], paced=True)
    assert reasons(nothing)[-1] == "all partitions are idle and none has had a record: event time has not begun"


@pytest.mark.parametrize("known", [{"live": False}, {"follows": True}, {"exhausted": True}])
def test_windows_are_no_reason_where_nobody_waits_for_event_time(known):
    assert not any("window" in said for said in reasons(timed(part(0, "10:30"), part(3, "10:05", quiet=9.0), **known)))


def test_times_are_utc_and_as_exact_as_they_are_round():
    assert instant(at("10:00")) == "2026-05-01T10:00Z"
    assert instant(at("10:00:05")) == "2026-05-01T10:00:05Z"
    assert instant(at("10:00") + 7) == "2026-05-01T10:00:00.007Z"
    assert instant(10**17) == "100000000000000000"
    assert lasted(0.25) == "250 ms"
