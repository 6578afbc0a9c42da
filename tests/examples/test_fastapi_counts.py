"""The web service as it is run: uvicorn with two workers, killed, interrupted, reloaded, while clients go on posting.

The oracle is the log itself and what the clients were told: each submission that got a 202 is in the log once, and the
views count what is in the log, each once.
"""

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

import streamactors as sa

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fastapi_counts.py"
QUIZZES = ("algebra", "biology", "chemistry")
HTTP = httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))
"""Each request over a connection of its own, so that any worker may answer."""

PATIENCE_SECONDS = 60.0
"""Until a fact that has to come is given up: a busy machine is slow."""


def until(fact, what):
    """Return what *fact()* returns as soon as it is true."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends:
        found = fact()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s")


class Service:
    """uvicorn in a process group of its own, as in a terminal."""

    def __init__(self, folder: Path, data: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = data
        self.said = folder / "said"
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "uvicorn",
                    "service:app",
                    "--app-dir",
                    folder,
                    "--port",
                    str(self.port),
                    *options,
                ],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "QUIZ_DATA": str(data)},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        until(self.health, "the service answers")

    def get(self, path: str):
        """Return the answer, or None while nobody answers."""
        try:
            return HTTP.get(f"{self.url}{path}")
        except httpx.TransportError:
            return None

    def health(self):
        answer = self.get("/health")
        return None if answer is None else answer.json()

    def healths(self) -> dict[int, str]:
        """What workers say of the job, by process; of those that happen to answer."""
        seen = [self.health() for _ in range(20)]
        return {one["worker"]: one["job"] for one in seen if one}

    def worker_with_job(self) -> int:
        def find():
            return next((worker for worker, job in self.healths().items() if job == "running"), None)

        return until(find, "a worker runs the job")

    def interrupt(self) -> float:
        """Ctrl-C, which the whole group gets; return the seconds until the service has ended."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(PATIENCE_SECONDS)
        return time.monotonic() - began

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Clients:
    """Some threads that post, each submission with an id of its own."""

    def __init__(self, service: Service, threads: int = 3) -> None:
        self._service = service
        self._ids = itertools.count()
        self._stop = threading.Event()
        self.sent: set[int] = set()
        self.accepted: set[int] = set()
        self.refused: list[str] = []
        self._threads = [threading.Thread(target=self._post) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _post(self) -> None:
        while not self._stop.is_set():
            number = next(self._ids)
            body = {"id": number, "quiz_id": QUIZZES[number % 3], "score": number % 7, "submitted_at": now_ms()}
            self.sent.add(number)
            try:
                answer = HTTP.post(f"{self._service.url}/submissions", json=body)
            except httpx.TransportError:  # may be in the log, and may not
                time.sleep(0.02)
                continue
            if answer.status_code == 202:
                self.accepted.add(number)
            else:
                self.refused.append(answer.text)

    def accepted_more(self, count: int) -> None:
        wanted = len(self.accepted) + count
        until(lambda: len(self.accepted) >= wanted, f"{count} more are accepted")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def in_log(data: Path) -> list[dict]:
    async def read():
        async with sa.Log(data) as log:
            topic = await log.topic("submissions")
            values = []
            for number in range(topic.partitions):
                reader = topic.partition(number).reader()
                while chunks := await reader.read():
                    values += [value for chunk in chunks for value in chunk.values()]
            return values

    return list(map(json.loads, asyncio.run(read())))


def written_partitions(data: Path) -> list[Path]:
    """Return the folders of the partitions with more in them than an empty one has."""
    folders = [path for path in (data / "log" / "submissions").iterdir() if path.is_dir()]
    return [path for path in folders if sum(file.stat().st_size for file in path.glob("*.segment")) > 1_000]


def assert_all_is_counted_once(data: Path, clients: Clients) -> None:
    """Of the log and the clients' answers follows what the views have to show, now or soon."""

    def expected():
        # Read each time: what a client has given up may still be on its way into the log.
        logged = in_log(data)
        ids = [submission["id"] for submission in logged]
        assert len(ids) == len(set(ids))
        assert clients.accepted <= set(ids) <= clients.sent
        return Counter(submission["quiz_id"] for submission in logged)

    assert clients.refused == []
    with sa.open_views(data, "quiz-service") as views:

        def shown():
            return {quiz: row["count"] for quiz, row in views["quizzes"].items()}

        until(lambda: shown() == expected(), "all of the log is counted, each once")

        def by_window():
            counts = Counter()
            for (quiz, _), count in views["windows"].items():
                counts[quiz] += count
            return counts

        until(lambda: by_window() == expected(), "early results of windows, each second, show it as well")


@pytest.fixture
def folder(tmp_path):
    """A folder with the example as service.py, which a test may touch."""
    folder = tmp_path / "app"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder / "service.py")
    return folder


@pytest.fixture
def start(folder, data_dir):
    services = []

    def begin(*options) -> Service:
        services.append(Service(folder, data_dir, *options))
        return services[-1]

    yield begin
    for service in services:
        service.end()


@pytest.fixture
def clients():
    started = []

    def begin(service) -> Clients:
        started.append(Clients(service))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def test_of_two_workers_one_runs_the_job_and_both_accept_and_read(start, clients, data_dir):
    service = start("--workers", "2")
    posting = clients(service)
    holder = service.worker_with_job()
    until(lambda: len(written_partitions(data_dir)) == 2, "each worker appends to a partition of its own")
    posting.stop()

    seen = until(lambda: len(found := service.healths()) == 2 and found, "both workers answer")
    (other,) = seen.keys() - {holder}
    assert seen == {holder: "running", other: f"stands by, process {holder} runs the job"}
    assert f"process {holder} runs the job; this one stands by" in service.said.read_text()
    expected = Counter(submission["quiz_id"] for submission in in_log(data_dir))
    until(lambda: service.get("/quizzes/algebra").json().get("count") == expected["algebra"], "it is counted")
    answers = [service.get("/quizzes/algebra").json() for _ in range(20)]
    assert {answer["count"] for answer in answers} == {expected["algebra"]}, "whichever worker answers"
    assert_all_is_counted_once(data_dir, posting)


@pytest.mark.crash
def test_when_the_worker_with_the_job_is_killed_the_other_takes_over(start, clients, data_dir):
    service = start("--workers", "2")
    posting = clients(service)
    for _ in range(2):
        holder = service.worker_with_job()
        posting.accepted_more(50)
        os.kill(holder, signal.SIGKILL)
        assert service.worker_with_job() != holder
        posting.accepted_more(50)
    posting.stop()
    assert_all_is_counted_once(data_dir, posting)
    until(lambda: len(service.healths()) == 2, "uvicorn has started workers anew")


def test_ctrl_c_ends_it_soon_and_cleanly_and_the_next_start_counts_the_rest(start, clients, data_dir):
    service = start("--workers", "2")
    posting = clients(service)
    service.worker_with_job()
    posting.accepted_more(100)
    seconds = service.interrupt()
    posting.stop()
    assert service.process.returncode in (0, -signal.SIGINT, 128 + signal.SIGINT)
    assert seconds < 30  # 0.4 to 2 s, measured beside four runnable programs for each core
    assert "Traceback" not in service.said.read_text()

    again = start()
    posting_again = Clients(again, threads=0)
    posting_again.sent, posting_again.accepted = posting.sent, posting.accepted
    assert_all_is_counted_once(data_dir, posting_again)


def test_what_was_counted_is_shown_when_the_service_has_ended(start, clients, data_dir):
    service = start()
    posting = clients(service)
    posting.accepted_more(30)
    posting.stop()
    assert_all_is_counted_once(data_dir, posting)
    service.interrupt()
    assert_all_is_counted_once(data_dir, posting)


@pytest.mark.crash
def test_a_reload_while_clients_post_loses_and_repeats_nothing(start, clients, data_dir, folder):
    service = start("--reload", "--reload-dir", str(folder))
    posting = clients(service)
    workers = []
    for _ in range(2):
        workers.append(service.worker_with_job())
        posting.accepted_more(50)
        os.utime(folder / "service.py")
        until(lambda: (service.health() or {"worker": workers[-1]})["worker"] != workers[-1], "a new worker answers")
    workers.append(service.worker_with_job())
    posting.accepted_more(50)
    posting.stop()
    assert len(set(workers)) == 3
    assert "Traceback" not in service.said.read_text()
    assert_all_is_counted_once(data_dir, posting)


def test_what_can_not_be_counted_is_refused_with_422_and_never_appended(start, data_dir):
    service = start()
    good = {"quiz_id": "algebra", "score": 1, "submitted_at": now_ms()}
    bad = [
        b"",
        b"{",
        b"[]",
        json.dumps({**good, "quiz_id": 1}).encode(),
        json.dumps({**good, "quiz_id": ""}).encode(),
        json.dumps({**good, "score": "high"}).encode(),
        json.dumps({**good, "submitted_at": -1}).encode(),
        json.dumps({**good, "submitted_at": 10**30}).encode(),
        json.dumps({**good, "submitted_at": now_ms() + 10**9}).encode(),
        json.dumps({"score": 1}).encode(),
        b'{"quiz_id": "\xff", "score": 1, "submitted_at": 1}',
        b'{"quiz_id": "a", "score": 1e999, "submitted_at": 1}',
        b'{"quiz_id": "a", "score": 1e308, "submitted_at": 1}',
        b'{"more": ' + 30_000 * b"[",
    ]
    for body in bad:
        answer = HTTP.post(f"{service.url}/submissions", content=body)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.json()["detail"]
    assert HTTP.post(f"{service.url}/submissions", content=b" " * 100_000).status_code == 413
    assert HTTP.post(f"{service.url}/submissions", content=json.dumps(good, indent=1)).status_code == 202
    assert service.get("/quizzes/unknown").status_code == 404
    until(lambda: service.get("/quizzes/algebra").status_code == 200, "the good one is counted")
    assert in_log(data_dir) == [good]
    metrics = service.get("/metrics/").text
    assert 'streamactors_log_appended_records_total{topic="submissions"} 1.0' in metrics
    assert 'streamactors_records_total{job="quiz-service",region="submissions"} 1.0' in metrics
