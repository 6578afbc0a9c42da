import sys

import pytest

from streamactors.core.errors import PipelineError, UsageError
from streamactors.ops.loading import load

HEAD = "import sys\nimport streamactors as sa\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write a user's file; what running it changes in this process is put back."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", sys.modules.copy())

    def write(text: str) -> str:
        path = tmp_path / "users.py"
        path.write_text(HEAD + text)
        return str(path)

    return write


def test_the_only_pipeline_of_a_file_needs_no_name(file):
    assert load(file("p = same = sa.Pipeline('one')\n"), []).name == "one"


def test_of_several_pipelines_one_has_to_be_named(file):
    path = file("a = sa.Pipeline('one')\nb = sa.Pipeline('two')\n")
    assert load(f"{path}:b", []).name == "two"
    with pytest.raises(UsageError, match=r"users.py:a, .*users.py:b"):
        load(path, [])


def test_a_function_that_returns_a_pipeline_can_be_named(file):
    assert load(file("def build():\n    return sa.Pipeline('built')\n") + ":build", []).name == "built"


def test_the_file_sees_its_arguments_and_its_neighbours(file, tmp_path):
    (tmp_path / "neighbour_of_users.py").write_text("NAME = 'n'")
    path = file(
        "import neighbour_of_users as n\np = sa.Pipeline(n.NAME + sys.argv[1])\nassert __name__ != '__main__'\n"
    )
    assert load(path, ["7"]).name == "n7"


def test_annotations_of_the_files_classes_are_found(file):
    text = "import msgspec\nclass A(msgspec.Struct):\n    b: 'B'\nclass B(msgspec.Struct):\n    c: int\n"
    assert load(file(text + "msgspec.json.Decoder(A)\np = sa.Pipeline('x')\n"), []).name == "x"


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "", "has no Pipeline at module level"),
        ("x = 1\n", ":x", "neither a Pipeline nor a function that returns one, but 1"),
        ("", ":y", "neither a Pipeline nor"),
        ("def f():\n    return 1\n", ":f", "neither a Pipeline nor"),
        ("sys.exit('name a file')\n", "", "^name a file$"),
    ],
)
def test_what_is_no_pipeline_is_refused(file, text, target, message):
    with pytest.raises(UsageError, match=message):
        load(file(text) + target, [])


@pytest.mark.parametrize(
    ("text", "target", "frame"),
    [("def f():\n    return 1 / 0\nf()\n", "", "line 4, in f"), ("def g():\n    return 1 / 0\n", ":g", "line 4, in g")],
)
def test_an_error_of_the_file_is_shown_with_its_own_frames_only(file, text, target, frame):
    with pytest.raises(UsageError) as caught:
        load(file(text) + target, [])
    message = str(caught.value)
    assert frame in message and message.endswith("ZeroDivisionError: division by zero")
    assert "loading.py" not in message and "importlib" not in message


def test_a_syntax_error_is_shown_with_its_place(file):
    with pytest.raises(UsageError, match=r"(?s)users.py\", line 3.*SyntaxError"):
        load(file("def :\n"), [])


def test_a_pipeline_that_is_refused_while_it_is_built_says_so_itself(file):
    with pytest.raises(PipelineError, match=r"users.py:3"):
        load(file("sa.Pipeline('x').items([1]).to_view('v')\n"), [])


def test_the_files_own_exit_code_stands(file):
    with pytest.raises(SystemExit) as caught:
        load(file("sys.exit(7)\n"), [])
    assert caught.value.code == 7


@pytest.mark.parametrize("target", ["no.py", "no.py:name", ""])
def test_a_file_that_is_not_there_is_refused(target):
    with pytest.raises(UsageError, match="there is no file"):
        load(target, [])
