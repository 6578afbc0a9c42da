"""The units that docs/operation.md shows: systemd takes them, and what they say of us is true."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from streamactors.ops.cli import commands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operation.md").read_text(encoding="utf-8")
UNITS = dict(re.findall(r"<!-- unit: (\S+) -->\n```ini\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
OURS = "/opt/quiz/venv/bin/streamactors"


def service(name):
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(UNITS[name])
    return parser


def test_the_page_shows_a_service_a_backup_and_its_timer():
    assert UNITS.keys() == {"quiz.service", "quiz-backup.service", "quiz-backup.timer"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(tmp_path):
    for name, text in UNITS.items():
        # What is not on this machine stands for something that is: our program, and the user.
        here = re.sub(r"^(User|Group|WorkingDirectory)=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(here.replace(OURS, "/bin/true"))
    for name in UNITS:
        command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if name.partition(".")[0] in line]
        assert not said, said


def test_the_service_says_of_us_what_is_true():
    unit = service("quiz.service")["Service"]
    assert unit["ExecStart"].startswith(f"{OURS} run ")
    assert (unit["KillSignal"], unit["Type"]) == ("SIGTERM", "exec")
    assert "WatchdogSec" not in unit  # nothing here speaks sd_notify
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "streamactors").rglob("*.py")]
    assert not any("NOTIFY_SOCKET" in text for text in sources)
    assert "STREAMACTORS_DATA=" in unit["Environment"]


def test_each_command_on_the_page_is_one_with_such_flags():
    lines = re.findall(
        r"streamactors ((?:log|backup|restore|deadletters|run)\b[^\n`']*)",
        "\n".join(re.findall(r"^```(?:sh|ini)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)),
    )
    assert len(lines) >= 9
    for line in lines:
        command, words = commands, line.split()
        while hasattr(command, "list_commands"):
            command = command.get_command(None, words.pop(0))
            assert command is not None, line
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
