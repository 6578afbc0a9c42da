"""Pages that tell a story: programs, commands, outputs and exit codes are as the page says, in its order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<kind>python|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def ran(command, folder):
    """Return what a command of the page prints, as it stands there; a shell runs it."""
    tools = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env={**os.environ, **tools}, capture_output=True, text=True, check=False
    )
    code = [f"(exit code {done.returncode})"] if done.returncode else []
    return [*done.stdout.splitlines(), *code], done.stderr


def fits(line, expected):
    """Whether a line is as the page has it; ``...`` stands for the rest of a line."""
    shown, dots, _ = expected.partition("...")
    return line.startswith(shown) if dots else line == expected


@pytest.mark.parametrize("page", ["kappa.md", "moving.md"])
def test_the_story_goes_as_it_is_told(tmp_path, page):
    (tmp_path / "bin").mkdir()
    for name, what in (("streamactors", "-m streamactors "), ("python", "")):
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {what}"$@"\n')
        tool.chmod(0o755)
    commands = 0
    for block in BLOCK.finditer((ROOT / "docs" / page).read_text()):
        text = block["text"]
        if block["kind"] == "python":
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
            continue
        for story in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *expected = story.splitlines()
            out, err = ran(command, tmp_path)
            commands += 1
            assert len(out) == len(expected), (command, out, err)
            for line, wanted in zip(out, expected, strict=True):
                assert fits(line, wanted), (command, line, wanted)
    assert commands >= 10
