"""Stepping: a run again that stops, under a debugger, in the user's function at one record.

The batch that holds the record is cut around it (which nobody can see, T2), and while that one row is handled, a trace
function waits for the first call of code that is neither ours nor Python's. There the debugger takes over. So any
function of the user stops: that of a map, a key_by, a reduce, or one that it calls.

Nothing is stopped when C code alone handles the row (a field's name as a key, a count), or when the function is not
called for it: ``reduce`` takes the first record of a key as it is.
"""

from __future__ import annotations

import pdb  # noqa: T100 - the command that asks for a debugger
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType, FunctionType, MethodType
from typing import IO, Any

from streamactors.core.batch import Batch
from streamactors.core.errors import UsageError
from streamactors.core.keys import CanonicalKey
from streamactors.flow.async_calls import AsyncOperator
from streamactors.flow.operator import Emit, Operator
from streamactors.graph.nodes import Node

from .steps import Place

_PACKAGES = tuple(str(Path(__file__).parents[2] / name) for name in ("streamactors", "connectors"))
_PYTHON = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"])
_SITE = (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"])
_DEPTH_MAX = 8
"""How deep functions are looked for in an operator: an aggregate of several, its selector, a closure in it."""


class Stepper:
    """Stop where one record is handled by one operator. ``dress`` is for ``explain``."""

    def __init__(
        self,
        place: Place,
        key: CanonicalKey,
        operator: str,
        *,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
    ) -> None:
        self.stopped = False
        """Whether it has."""

        self.left = False
        """Whether the user has ended the debugger: what the run raises then is of no interest."""

        self._place = place
        self._key = key
        self._operator = operator
        self._streams = stdin, stdout

    def dress(self, node: Node, operator: Operator) -> Operator:
        """Let the operator that was chosen stop."""
        if node.id == self._operator:
            plain = operator.taking
            setattr(operator, "taking", lambda: partial(self._take, plain()))  # noqa: B010 - of this one object
        return operator

    def _take(self, take: Emit, batch: Batch) -> None:
        row = self._row(batch)
        if row is None:
            take(batch)
            return
        if row:
            take(batch.slice(0, row))
        before = sys.gettrace()
        sys.settrace(self._until_called)
        try:
            take(batch.slice(row, row + 1))
        finally:
            sys.settrace(before)
        if row + 1 < len(batch):
            take(batch.slice(row + 1, len(batch)))

    def _row(self, batch: Batch) -> int | None:
        """Return the last row that was made of the record, of those with the key if they have keys."""
        source, partition, offset = self._place
        origin = batch.origin
        if self.stopped or origin is None or (origin.source, origin.partition) != (source, partition):
            return None
        if offset not in batch.offsets:
            return None
        rows = [row for row, at in enumerate(batch.offsets) if at == offset]
        keyed = [row for row in rows if batch.keys is not None and batch.keys[row] == self._key]
        return (keyed or rows)[-1]

    def _until_called(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Wait for a call of the user's code; a trace function."""
        del argument
        if event != "call" or self.stopped or not is_users(frame.f_code.co_filename):
            return None
        self.stopped = True
        stdin, stdout = self._streams
        debugger = _Debugger(self, stdin, stdout)
        debugger.set_trace(frame)
        return debugger.trace_dispatch


class _Debugger(pdb.Pdb):
    def __init__(self, stepper: Stepper, stdin: IO[str] | None, stdout: IO[str] | None) -> None:
        super().__init__(stdin=stdin, stdout=stdout, nosigint=True)
        self._stepper = stepper
        if stdin is not None:
            self.use_rawinput = False

    def stop_here(self, frame: FrameType) -> bool:
        """Stop in the user's code alone, however he steps."""
        return is_users(frame.f_code.co_filename) and super().stop_here(frame)

    def set_quit(self) -> None:
        """Note that the user has had enough."""
        self._stepper.left = True
        super().set_quit()


def choose(nodes: Iterable[Node], name: str | None) -> str:
    """
    Return the id of the operator to stop in: the one named, or the last of *nodes* that has a function of the user.

    *nodes* are those that the record reaches under its own name, upstream first. Refuse what can't be stopped in.
    """
    known = {node.id: node for node in nodes}
    able = [node.id for node in known.values() if node.build is not None and not node.awaited and _has_function(node)]
    if name is None:
        if not able:
            raise UsageError(
                "no operator that the record passes has a function of yours: all of them are built in. There is "
                "nothing to step through."
            )
        return able[-1]
    if name in able:
        return name
    choice = f"Operators with a function to stop in: {', '.join(able) or 'none'}."
    if name not in known:
        raise UsageError(f"the record does not pass an operator {name} on its way to the view. {choice}")
    why = "its function is async, and a call of it is no one place in the run" if known[name].awaited else "it has none"
    raise UsageError(f"operator {name} has no function that could be stopped in: {why}. {choice}")


def _has_function(node: Node) -> bool:
    assert node.build is not None, f"{node!r} has no operator"
    operator = node.build()
    return not isinstance(operator, AsyncOperator) and next(user_functions(operator), None) is not None


def user_functions(thing: Any, depth: int = _DEPTH_MAX) -> Iterator[Callable[..., Any]]:
    """Yield the functions of the user that an operator of ours holds, however wrapped."""
    if depth == 0 or isinstance(thing, str | bytes | int | float):
        return
    if isinstance(thing, FunctionType) and is_users(thing.__code__.co_filename):
        yield thing
        return
    for held in _held(thing):
        yield from user_functions(held, depth - 1)


def _held(thing: Any) -> Iterable[Any]:
    """Return what *thing* holds, where that may be a function."""
    match thing:
        case FunctionType():
            return [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        case MethodType():
            return [thing.__func__, thing.__self__]
        case partial():
            return [thing.func, *thing.args, *thing.keywords.values()]
        case list() | tuple():
            return thing
        case dict():
            return thing.values()
    kind = type(thing)
    if kind.__module__.split(".")[0] == "streamactors":
        slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
        return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]
    # An object of the user's that can be called: its method is a function of his.
    return [call] if isinstance(call := vars(kind).get("__call__"), FunctionType) else []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet
        return False


def is_users(filename: str) -> bool:
    """Return whether code of this file is the user's: neither ours nor Python's own."""
    if filename.startswith((*_PACKAGES, "<")):
        return False
    return filename.startswith(_SITE) or not filename.startswith(_PYTHON)
