"""Starting is fast because little is imported. Counted in modules: a machine's mood decides over milliseconds."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest

import streamactors
from tests.ops.conftest import ROOT

PRINT_MODULES = "import sys; from streamactors.ops.cli import invoke; invoke(sys.argv[1:]); print(*sys.modules)"


def imported(*arguments: object) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_MODULES, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "needless"),
    [
        (["--help"], {"asyncio", "lmdb", "msgspec", "rich", "streamactors.durable", "uvloop"}),
        (["log", "--help"], {"asyncio", "lmdb", "msgspec", "rich"}),
        (["view", "show", "--data", "/nonexistent", "x"], {"asyncio", "rich", "uvloop", "streamactors.job"}),
        (["log", "info", "--data", "/nonexistent"], {"lmdb", "rich", "uvloop", "streamactors.job"}),
        (["run", "no.py", "--data", "/nonexistent"], {"rich"}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_needs(arguments, needless):
    modules = imported(*arguments)
    assert "streamactors.ops.cli" in modules and not modules & needless


def test_every_name_of_the_root_is_what_type_checkers_see():
    tree = ast.parse((ROOT / "streamactors" / "__init__.py").read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    names = [
        (alias.asname or alias.name, getattr(import_module(statement.module), alias.name))
        for statement in seen.body
        for alias in statement.names
    ]
    assert sorted(name for name, _ in names) == sorted(streamactors.__all__) == dir(streamactors)
    assert all(getattr(streamactors, name) is value for name, value in names)


def test_a_name_that_the_root_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        streamactors.nope  # noqa: B018
