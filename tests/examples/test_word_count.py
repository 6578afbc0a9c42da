import json
import re
from collections import Counter

import pytest

EXAMPLE = "examples/word_count.py"
TEXTS = {
    "a.txt": "To be, or not to be:\nthat is\r\nthe question.\n",
    "b.txt": "Be quick\n\n\nnot slow\n\n\nis it\nÉté, été",
}


@pytest.fixture
def files(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return [tmp_path / name for name in TEXTS]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_windows_and_running_counts_are_those_of_the_text(streamactors, view, data_dir, files):
    streamactors("run", EXAMPLE, "--data", data_dir, "--finish", "--", *files)

    windows = Counter(
        (word, number // 5 * 5_000)
        for text in TEXTS.values()
        for number, line in enumerate(text.splitlines())
        for word in words(line)
    )
    totals = Counter(word for text in TEXTS.values() for word in words(text))
    assert view("word_windows") == windows
    assert view("word_counts") == totals

    results = map(json.loads, streamactors("log", "read", "--data", data_dir, "running_counts").splitlines())
    running: Counter[str] = Counter()
    for result in results:
        running[result["word"]] += 1
        assert result["count"] == running[result["word"]]  # a result for every word
    assert running == totals


def test_as_a_script_it_prints_what_it_counted(python, files):
    done = python(EXAMPLE, *files)
    assert done.returncode == 0, done.stderr
    counts, windows = done.stdout.split("first windows\n")
    assert counts.splitlines()[:2] == ["most frequent words", "       3  be"]
    assert windows.splitlines()[0] == "       3  be  from line 1"


@pytest.mark.parametrize(("arguments", "message"), [([], "Name at least one"), (["no.txt"], "there is no file no.txt")])
def test_without_a_file_it_says_what_it_needs(python, data_dir, arguments, message):
    for command in (
        [EXAMPLE, *arguments],
        ["-m", "streamactors", "run", EXAMPLE, "--data", data_dir, "--", *arguments],
    ):
        done = python(*command)
        assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
