"""The command line: which commands there are, and what becomes of an error.

A command's module is imported when that command is asked for: `streamactors view show` starts without asyncio and the
engine, `streamactors --help` without LMDB.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

EXIT_CODES = """\b
Exit codes:
  0    done; a run that was drained counts as done
  1    run: the job failed, its restarts are used up
       view show --key: there is no such row
       explain: what came out is not what is stored
       diff: rows differ; promote, rollback: not within --timeout
  2    usage: flags, a topic, view or file that is not there, bad input lines,
       an error in the pipeline's file
  3    the pipeline is refused, or does not fit its stored checkpoint
  4    another process has it
  5    storage: damaged, full, or not accessible
  130  killed by a second Ctrl-C (143: by a second SIGTERM)
  141  nobody reads the output any more
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def __init__(self, *arguments: Any, homes: dict[str, str], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._homes = homes  # name → "module:command (short help)"

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which one meets them."""
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self._homes:
            return None
        module, name = self._homes[cmd_name].split(":")
        command = getattr(import_module(f"streamactors.ops.{module}"), name)
        assert isinstance(command, click.Command), f"{module}:{name} is no command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from a table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SHORT[self._homes[name]]) for name in self._homes])


_SHORT = {
    "cli:log": "Topics: append, read, list, make, retain, delete.",
    "append_command:append": "Append lines of JSON from standard input to a topic.",
    "log_commands:read": "Print a topic's values as JSON lines.",
    "log_commands:info": "Print what topics hold.",
    "topic_commands:create": "Make a topic.",
    "topic_commands:retain": "Remove a topic's old records, but none that a job still needs.",
    "topic_commands:delete": "Delete a topic.",
    "run_command:run": "Run a pipeline.",
    "cli:view": "Read views.",
    "inspect_commands:show": "Print a view's rows.",
    "explain_command:explain": "Print what made the value of a view's key.",
    "inspect_commands:checkpoints": "Print the checkpoints of jobs.",
    "inspect_commands:journal": "Print what jobs have read, and in which order.",
    "cli:deadletters": "Records that an operator could not handle: list, show, put back.",
    "deadletter_commands:list_letters": "Print the dead letters of a job.",
    "deadletter_commands:show": "Print all that is known of one dead letter.",
    "deadletter_commands:retry": "Put originals back into the topics that they came from.",
    "version_commands:versions": "Print the versions of jobs.",
    "replay_command:replay": "Run the log through other code, beside what is served.",
    "version_commands:diff": "Print which rows differ between two versions.",
    "version_commands:promote": "Let another version be served.",
    "version_commands:rollback": "Let the version be served that was before.",
    "version_commands:retire": "Forget a version, and delete its state.",
    "cli:savepoint": "Savepoints: take one, look into one, start from one.",
    "savepoint_commands:create": "Write a job's newest checkpoint to a file.",
    "savepoint_commands:list_savepoints": "Print the savepoints of a data folder.",
    "savepoint_commands:show": "Print what a savepoint holds, and check it.",
    "savepoint_commands:restore": "Make the state of a version of a savepoint.",
    "savepoint_commands:migrate": "Try the migrations of a pipeline on a savepoint.",
    "backup_commands:backup": "Copy a data folder while its jobs run.",
    "backup_commands:restore": "Make a data folder of a backup.",
    "erase_command:forget": "Delete one key, a person's data say, from topics, views and state.",
}
_SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}}

log = LazyGroup(
    "log",
    help="The durable log: append to topics, read and list them, make and delete them, remove what is old.",
    homes={
        "append": "append_command:append",
        "read": "log_commands:read",
        "info": "log_commands:info",
        "create": "topic_commands:create",
        "retain": "topic_commands:retain",
        "delete": "topic_commands:delete",
    },
)
view = LazyGroup("view", help="Views of jobs, whether they run or not.", homes={"show": "inspect_commands:show"})
deadletters = LazyGroup(
    "deadletters",
    help="Records that an operator could not handle: list them, look at one, put them back.",
    homes={
        "list": "deadletter_commands:list_letters",
        "show": "deadletter_commands:show",
        "retry": "deadletter_commands:retry",
    },
)
savepoint = LazyGroup(
    "savepoint",
    help="Savepoints: one checkpoint of a job in a file, from which a job can start, with other code too.",
    homes={
        "create": "savepoint_commands:create",
        "list": "savepoint_commands:list_savepoints",
        "show": "savepoint_commands:show",
        "restore": "savepoint_commands:restore",
        "migrate": "savepoint_commands:migrate",
    },
)
commands = LazyGroup(
    "streamactors",
    help="A durable log, an exactly-once stream processor, and views, in one process and one folder.",
    epilog=EXIT_CODES,
    homes={
        "log": "cli:log",
        "run": "run_command:run",
        "view": "cli:view",
        "explain": "explain_command:explain",
        "checkpoints": "inspect_commands:checkpoints",
        "journal": "inspect_commands:journal",
        "deadletters": "cli:deadletters",
        "versions": "version_commands:versions",
        "replay": "replay_command:replay",
        "diff": "version_commands:diff",
        "promote": "version_commands:promote",
        "rollback": "version_commands:rollback",
        "retire": "version_commands:retire",
        "savepoint": "cli:savepoint",
        "backup": "backup_commands:backup",
        "restore": "backup_commands:restore",
        "forget": "erase_command:forget",
    },
    **_SETTINGS,
)
click.version_option(package_name="streamactors")(commands)

data_option = click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    required=True,
    envvar="STREAMACTORS_DATA",
    type=click.Path(file_okay=False, path_type=Path),
    help="The data folder: log and state. Or the variable STREAMACTORS_DATA.",
)


def main() -> None:
    """Run the command line of this process and exit."""
    if sys.platform == "win32":
        sys.exit("streamactors: Windows is not supported: it lacks the file locks that this needs. Use WSL 2.")
    _fill_closed_streams()
    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _broken_pipe()
    sys.exit(code)


def _fill_closed_streams() -> None:
    """Let what the caller closed lead nowhere; else the next file that is opened, a segment say, is standard output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def invoke(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        with commands.make_context("streamactors", list(arguments)) as context:
            code = commands.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _broken_pipe()
    except Exception as error:  # noqa: BLE001 - all that is left is told to the user
        from .failures import exit_code, report

        report(error)
        return exit_code(error)
    return code if isinstance(code, int) else 0


def _usage(error: click.ClickException) -> int:
    """Say what is wrong with the arguments, and where to look."""
    from .failures import complain

    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        sys.stderr.write(f"{error.format_message()}\n")
    else:
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        complain(f"{error.format_message()}{hint}")
    return error.exit_code


def _broken_pipe() -> int:
    """Nobody reads any more, as behind ``| head``: that is no error of anyone, so say nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
