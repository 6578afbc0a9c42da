"""The comparison with peers, without any peer: stand-ins that are right, wrong, slow or broken take their places."""

import json
import sys

import pytest

from benchmarks.peers import environments, racing, run
from benchmarks.peers.environments import Unavailable, python_of
from benchmarks.peers.racing import race
from benchmarks.peers.table import PEERS, Peer
from benchmarks.peers.workloads import WORKLOADS, difference

MINUTE = 60_000
RIGHT = """
import collections, json, pathlib, sys
task = json.loads(sys.argv[1])
lines = [json.loads(line) for line in open(task["lines"])]
counts = collections.Counter((s["quiz_id"], s["submitted_at"] // 600_000 * 600_000) for s in lines)
out = pathlib.Path(task["folder"], "out")
out.mkdir()
rows = [{"quiz": quiz, "start": start, "n": n} for (quiz, start), n in counts.items()]
rows = rows[LEFT_OUT:]
(out / "part-0").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print("a line of its own log")
print(json.dumps({"seconds": 0.5, "cpu": 0.25, "start": 3.0}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Make the one peer of the comparison: a program that runs in this interpreter."""

    def made(text, **more):
        program = tmp_path / "stand_in.py"
        program.write_text(text)
        monkeypatch.setattr(run, "PEERS", (Peer("Stand-in", (), program, workloads={"windowed": 0}, **more),))

    return made


def compare(tmp_path, *arguments):
    run.main(["windowed", "--quick", "--cache", str(tmp_path / "cache"), *arguments])


def test_a_peer_that_agrees_with_the_oracle_has_a_line_beside_ours(stand_in, tmp_path, capsys):
    stand_in(RIGHT.replace("LEFT_OUT", "0"), to_reach={"windowed": 8.0})

    compare(tmp_path, "--require")

    printed = capsys.readouterr().out
    assert "outputs equal the oracle's" in printed
    line = next(line for line in printed.splitlines() if "Stand-in" in line)
    assert line.split()[:3] == ["Stand-in", "0.50", "10,000"]
    assert "8.0 x" in line and "3.0 s" in line
    assert "StreamActors, same file" in printed and "Not compared" not in printed


def test_a_peer_with_a_wrong_row_has_the_reason_instead_of_a_time(stand_in, tmp_path, capsys):
    stand_in(RIGHT.replace("LEFT_OUT", "1"))

    compare(tmp_path)

    compared, _, not_compared = capsys.readouterr().out.partition("Not compared")
    assert "Stand-in" not in compared
    assert "Stand-in: wrong output: 1 of" in not_compared and "(windowed)" in not_compared


def test_a_peer_that_was_not_compared_fails_the_command_only_when_it_is_required(stand_in, tmp_path, capsys):
    stand_in("raise SystemExit('no licence')")

    compare(tmp_path)
    with pytest.raises(SystemExit) as ended:
        compare(tmp_path, "--require")

    assert ended.value.code == 1
    assert capsys.readouterr().out.count("Stand-in: failed: no licence (windowed)") == 2


@pytest.mark.parametrize("workload", ["stateless", "words"])
def test_a_peer_is_not_asked_for_what_it_can_not_do(workload, stand_in, tmp_path, capsys):
    stand_in("raise SystemExit('asked')")

    run.main([workload, "--quick", "--cache", str(tmp_path / "cache"), "--require"])

    assert "Stand-in" not in capsys.readouterr().out


@pytest.mark.parametrize("workload", WORKLOADS)
def test_ours_gives_what_the_oracle_says_from_the_log_and_from_the_file(workload, tmp_path, monkeypatch):
    """Both sides that are ours take part in every comparison, so a peer that never answers is enough."""
    monkeypatch.setattr(run, "PEERS", (Peer("Silent", (), tmp_path / "none.py", workloads={workload: 0}),))
    sides = []
    monkeypatch.setattr(run, "_print", lambda workload, records, shown, options: sides.extend(shown))

    run.main([workload, "--quick", "--cache", str(tmp_path)])

    assert [side.name for side in sides if side.runs] == [run.LOG, run.FILES]


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    forever = [sys.executable, "-c", "import signal; signal.pause()"]

    with pytest.raises(Unavailable, match="took more than 0 s"):
        race(forever, {}, folder=tmp_path, cores={0}, patience=0.0)


@pytest.mark.parametrize("said", ["", "hello", "{}", "[1]", '{"seconds": 1}'])
def test_a_program_that_tells_no_time_is_not_compared(said, tmp_path):
    with pytest.raises(Unavailable, match="told no time"):
        race([sys.executable, "-c", f"print({said!r})"], {}, folder=tmp_path, cores={0}, patience=60.0)


def test_memory_is_that_of_the_program_and_of_what_it_started(tmp_path, monkeypatch):
    """The child keeps its 100 MB until they have been seen."""
    seen, look = tmp_path / "seen", racing._resident_mb

    def resident_mb(pid):
        found = look(pid)
        if found > 100:
            seen.touch()
        return found

    monkeypatch.setattr(racing, "_resident_mb", resident_mb)
    child = f"""
import pathlib, time
held = bytearray(b"x") * 100_000_000
while not pathlib.Path({str(seen)!r}).exists():
    time.sleep(0.01)
"""
    parent = f"""
import json, subprocess, sys
subprocess.run([sys.executable, "-c", {child!r}])
print(json.dumps({{"seconds": 1.0, "cpu": 1.0}}))
"""

    measured = race([sys.executable, "-c", parent], {}, folder=tmp_path, cores={0}, patience=60.0)

    assert 100 < measured.peak_mb < 200


def test_every_straggler_counts_in_its_own_window():
    lines = [
        {"quiz_id": "a", "submitted_at": 10 * MINUTE},
        {"quiz_id": "a", "submitted_at": 49 * MINUTE},
        {"quiz_id": "a", "submitted_at": 20 * MINUTE - 1},
        {"quiz_id": "b", "submitted_at": 20 * MINUTE},
    ]

    assert sorted(WORKLOADS["windowed"].oracle(lines)) == [
        ("a", 10 * MINUTE, 2),
        ("a", 40 * MINUTE, 1),
        ("b", 20 * MINUTE, 1),
    ]


def test_a_submission_passes_with_the_least_score_and_without_its_comment():
    passing = {"submission_id": 1, "quiz_id": "q", "user_id": "u", "score": 50.0, "comment": "c", "submitted_at": 7}

    assert WORKLOADS["stateless"].oracle([passing, passing | {"score": 49.5}]) == [(1, "q", "u", 50.0, 7)]


def test_each_word_has_a_result_that_says_how_often_it_was_seen():
    assert list(WORKLOADS["words"].oracle(["a b a", "a"])) == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]


def test_rows_may_be_lists_or_objects_in_any_order_in_several_files_with_more_columns(tmp_path):
    rows = [("a", 0, 2), ("b", 0, 1), ("c", 600_000, 5)]
    (tmp_path / "day").mkdir()
    (tmp_path / "part-1").write_text('["c",600000,5]\n["a",0,2]\n')
    (tmp_path / "day" / "part-2").write_text(json.dumps({"quiz": "b", "start": 0, "n": 1, "diff": 1}) + "\n")
    (tmp_path / "day" / ".part-3.inprogress").write_text("[")

    assert difference(rows, WORKLOADS["windowed"].written(tmp_path)) == ""


def test_a_difference_counts_and_shows_what_is_missing_and_what_is_too_much():
    """Rows are counted, not only looked for: one that comes twice is one too many."""
    expected, written = [("a", 1), ("b", 1), ("c", 1)], [("a", 1), ("a", 1), ("b", 2)]

    assert difference(expected, written) == (
        "wrong output: 2 of 3 rows are missing, 2 are too many; it lacks ('b', 1) and has ('a', 1)"
    )


def test_an_environment_is_made_once_and_again_when_a_version_changes(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(environments, "_run", lambda command: (ran.append(command[-1]), _make_folder(command)))
    old, new = Peer("P", ("p==1", "m==1")), Peer("P", ("p==1", "m==2"))

    for peer in (old, old, new):
        python_of(peer, tmp_path)

    assert [command for command in ran if "==" in command and "/" not in command] == ["m==1", "m==2"]


def _make_folder(command):
    if "venv" in command:
        environments.Path(command[-1]).mkdir(parents=True)


def test_a_peer_that_can_not_be_installed_says_why_and_leaves_no_environment_to_use(tmp_path):
    nowhere = Peer("Nowhere", (str(tmp_path / "nowhere"),), pythons=(".".join(map(str, sys.version_info[:2])),))

    with pytest.raises(Unavailable, match=r"can't be installed: .*nowhere"):
        python_of(nowhere, tmp_path / "envs")

    assert not list((tmp_path / "envs").glob("*/made"))


def test_a_peer_without_wheels_for_any_python_that_is_here_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match=r"has wheels for Python 2\.0"):
        python_of(Peer("Old", ("old==1",), pythons=("2.0",)), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorting"], "no workload is named sorting; there are windowed, stateless, words"),
        (["--peers", "spark"], "no peer's name begins with 'spark'; there are Bytewax"),
        (["--core", "4096"], "this process may use"),
        (["--core", "-1"], "this process may use"),
        (["--cores", "0"], "this process may use"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_there_is(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run.parse([*arguments, "--cache", str(tmp_path)])

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_peers_are_chosen_by_the_first_letters_of_their_names(tmp_path):
    _, options, _ = run.parse(["--peers", "bytewax, DUCK", "--cache", str(tmp_path)])

    assert [peer.name for peer in options.peers] == ["Bytewax", "Bytewax, FileSource", "DuckDB, batch"]
    assert options.envs == tmp_path / "peers"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_peer_has_exact_versions_and_either_a_program_or_a_reason(peer):
    assert all("==" in requirement for requirement in peer.requirements) and peer.requirements
    assert (peer.program is None) == bool(peer.why_not)
    assert peer.program is None or (peer.program.is_file() and peer.workloads.keys() <= WORKLOADS.keys())
