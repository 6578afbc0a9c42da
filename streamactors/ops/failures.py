"""Errors at the command line: which exit code, which words, and for whom there is a traceback.

What the user can mend is one message on standard error; a traceback would only hide it. In a user's own code the
traceback is what helps, cut to the frames of that code. A broken invariant, or anything else that nobody foresaw, is
our bug: then all of the traceback is shown.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from streamactors.core.errors import (
    BadRecord,
    Held,
    JobFailed,
    PipelineError,
    StorageError,
    StreamActorsError,
    UsageError,
)

from .output import printable

OK = 0
FAILED = 1
USAGE = 2
REFUSED = 3
HELD = 4
STORAGE = 5
SIGNALLED = 128

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, USAGE),
    (PipelineError, REFUSED),
    (Held, HELD),
    (StorageError, STORAGE),
    (OSError, STORAGE),
)
_PACKAGES = tuple(str(Path(__file__).parents[2] / name) for name in ("streamactors", "connectors"))


def exit_code(error: BaseException) -> int:
    """
    Return the exit code that stands for *error*.

    A job whose causes all ask for the same remedy ends with the code of that remedy: a topic that another process
    writes is "held" whether that is found at the start or by a sink.
    """
    if isinstance(error, JobFailed):
        codes = {exit_code(cause) for cause in error.exceptions}
        return codes.pop() if len(codes) == 1 else FAILED
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def report(error: BaseException) -> None:
    """Say on standard error what went wrong."""
    sys.stdout.flush()
    if isinstance(error, JobFailed):
        complain(error.message)
        for cause in error.exceptions:
            _report_cause(cause)
    elif isinstance(error, StreamActorsError):
        complain(str(error))
        _show_user_frames(error)
    elif isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        complain(f"{where}{error.strerror}. Check the path, who owns it, and the disk.")
    else:
        _show_all(error)


def complain(message: str) -> None:
    """Write one message on standard error; where nobody takes it, the exit code has to do."""
    with suppress(OSError):
        sys.stderr.write(f"streamactors: {printable(message, lines=True)}\n")


def _report_cause(cause: BaseException) -> None:
    if isinstance(cause, StreamActorsError):
        complain(f"cause: {type(cause).__name__}: {cause}")
        _show_user_frames(cause)
    else:
        _show_all(cause)


def _show_all(error: BaseException) -> None:
    complain(f"unforeseen {type(error).__name__}, please report it with what follows")
    traceback.print_exception(error)


def _show_user_frames(error: BaseException) -> None:
    """Show where in the user's own function a record failed."""
    cause = error.__cause__
    if isinstance(error, BadRecord) and cause is not None and (frames := user_frames(cause.__traceback__)):
        sys.stderr.write(f"{frames}{type(cause).__name__}: {cause}\n")


def user_frames(trace: TracebackType | None) -> str:
    """Return the traceback's frames outside this package and Python's import machinery; empty when there are none."""
    frames = [frame for frame in traceback.extract_tb(trace) if _is_users(frame.filename)]
    if not frames:
        return ""
    return "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames))


def _is_users(filename: Any) -> bool:
    name = str(filename)
    return not name.startswith((*_PACKAGES, "<frozen ", "<string>"))
