"""The pipeline: what the user writes. A named graph of plain data; nothing runs before a job does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from streamactors.core.connectors import Source
from streamactors.core.errors import PipelineError
from streamactors.core.limits import KEY_GROUPS
from streamactors.flow.dead_letters import OnError
from streamactors.flow.selectors import require_plain

from .nodes import Graph, Shape, caller, caller_file, check_name, error_policy, refuse
from .streams import Stream

T = TypeVar("T")
Prepare = Callable[[Any], Awaitable[None]]
Migrate = Callable[[Any, int | None, Any], Any]


class Migration(NamedTuple):
    """A function that changes what an operator keeps, and the version of its state that it makes."""

    version: int
    function: Migrate


class Pipeline:
    """
    A graph of streams with a name, which is the name of the job that runs it.

    Args:
        name:
            Letters, digits, ``-``, ``_`` and ``.``; the job's state is found again by it.

        parts:
            How many parts a keyed stage has: 1 to 128. May change while a job has state: it is split anew.

        on_error:
            What happens to a record that an operator can't handle, where ``stream.on_error`` does not say otherwise:
            ``fail``, ``skip`` or ``dead_letter``.
    """

    def __init__(self, name: str, *, parts: int = 1, on_error: OnError | str = OnError.FAIL) -> None:
        check_name("pipeline", name)
        if not 1 <= parts <= KEY_GROUPS:
            raise PipelineError(f"pipeline {name}: parts={parts} is not between 1 and {KEY_GROUPS}, the key groups.")
        self.name = name
        self.parts = parts
        self.file = caller_file()
        """The file in which it was built; None where that is no file. The catalogue notes it: see ``explain``."""

        self.graph = Graph(error_policy(on_error))
        self.preparations: list[Prepare] = []
        self.migrations: dict[str, list[Migration]] = {}

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {len(self.graph.nodes)} operators)"

    def source(self, source: Source) -> Stream[Any]:
        """Read *source*."""
        if any(node.source is not None and node.source.id == source.id for node in self.graph.nodes):
            why = "this pipeline reads it already."
            raise refuse(f"source {source.id}", caller(), why, "Read it once, and use the stream twice.")
        node = self.graph.add(
            "source", source.id, [], Shape(type=source.type), tolerant=True, detail=str(source), source=source
        )
        return Stream(self.graph, node)

    def topic(self, name: str, type: type[T] | None = None, *, encoding: str = "json") -> Stream[T]:  # noqa: A002
        """
        Read the log's topic *name*.

        Args:
            name:
                The topic. It must be there when the job starts.

            type:
                What to decode values into: a msgspec.Struct with the needed fields only is fastest. None: builtins.

            encoding:
                ``json``, ``msgpack``, or ``raw`` for bytes as they are.
        """
        from connectors.topic import TopicSource  # late: connectors import this package's core

        return self.source(TopicSource(name, type, encoding))

    def json_lines(self, path: Any, type: type[T] | None = None, *, name: str = "json") -> Stream[T]:  # noqa: A002
        """
        Read a file of JSON values, one a line; or all files that match a pattern, and those that appear later.

        Args:
            path:
                A file, or a pattern such as ``"data/*.jsonl"``.

            type:
                What to decode values into: a msgspec.Struct with the needed fields only is fastest. None: builtins.

            name:
                Of the source; a second one needs a name of its own.
        """
        from connectors.files import json_lines

        return self.source(json_lines(path, type, id=name))

    def text_lines(self, *paths: Any, name: str = "text") -> Stream[str]:
        """Read the lines of text files, each in its order, or of all that match one pattern and of those that appear.

        A second source of them needs a *name* of its own.
        """
        from connectors.files import text_lines

        return self.source(text_lines(*paths, id=name))

    def items(self, values: Iterable[T], *, name: str = "items") -> Stream[T]:
        """Read a list in memory; it must be the same whenever the job starts again."""
        from connectors.memory import Items

        return self.source(Items(list(values), name))

    def before_start(self, prepare: Prepare) -> Prepare:
        """Call ``await prepare(log)`` before the sources open, at each start of the job. A decorator."""
        self.preparations.append(prepare)
        return prepare

    def migrate(self, operator: str, *, version: int | None = None) -> Callable[[Migrate], Migrate]:
        """
        Change what *operator* has kept, when the job next starts with this code. A decorator::

            @pipeline.migrate("totals")
            def _(key, namespace, value):
                return {"points": value, "quizzes": 0}

        The function is called for each entry with its key, its namespace (a window's pane by its start; else None) and
        its value, as builtins: a struct is a dict, several aggregates are a dict by name. It returns the new value;
        None deletes the entry, which windows do not allow. Plain, and a function of its arguments alone: it may be
        called more than once. `streamactors savepoint migrate --dry-run` shows what it would do.

        Args:
            operator:
                Its id.

            version:
                Of the operator's state when the function is done with it: state of this version is not changed again.
                State begins as version 1. None: one more than the last migration here makes; so keep the functions in
                order, or number them.
        """
        known = self.migrations.setdefault(operator, [])
        last = known[-1].version if known else 1

        def register(function: Migrate) -> Migrate:
            require_plain("a migration", function)
            known.append(Migration(last + 1 if version is None else version, function))
            if known[-1].version <= last:
                raise refuse(
                    f"migrate {operator}", caller(), f"version {version} is not above {last}.", "Number them upwards."
                )
            return function

        return register

    def describe(self) -> str:
        """Return graph and plan as text: what is fused, where it is partitioned, what each stage keeps."""
        from .describe import describe  # late: the plan reads pipelines

        return describe(self)
