"""Migration: what becomes of stored rows when other code goes on with them. Pure: rows in, rows out.

One class does it for a savepoint on its way into a new store, for a store in place, and for a dry run, so that all
three mean the same:

    rows of an operator that is dropped, or starts empty    go
    rows of an operator that migrates                       are given to its migration functions, one by one
    an operator's rows by part                              are split anew by the operator itself (``Operator.resplit``)
    everything else                                         stays as it is, byte for byte

State is stored by key group, not by part, so another number of parts changes nothing in it. What is kept by part is
small (which windows are held, which marks were seen). It says in which namespaces a part has something, so it can be
split only when all state was seen: these rows come last.

A function that fails, or returns what the operator could not go on with, names operator, key and namespace. Nothing is
changed then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import PipelineError
from streamactors.core.keys import decode_key, plain_key
from streamactors.durable.rows import Namespace, Row, encode_rows, read_row
from streamactors.durable.savepoint import RowsBlock, SavepointDecoder
from streamactors.durable.writing import Delta
from streamactors.flow.kept import seen
from streamactors.flow.operator import Operator
from streamactors.flow.stage import groups_of_part
from streamactors.graph.pipeline import Migration

from .fit import Fit, Line, Verdict

OPERATOR_ROWS = "rows"
STAMPS = "stamps"
"""What a sink's row is called."""

_STATE, _VIEW, _PENDING = "state:", "view:", "pending:"
_KINDS_OF_WINDOWS = {"window"}
_VALUES = frozenset({"windows", "running", "map_with_state"})
"""Names of keyed states that hold what users see; others are bookkeeping."""

_SAMPLES, _FAILURES = 5, 10

_NAMESPACE_BYTES = 8
_BIAS = 1 << 63


@dataclass(frozen=True, slots=True)
class Sample:
    """One entry before and after; *after* is the error for one that failed."""

    key: Any
    namespace: Namespace
    before: Any
    after: Any


@dataclass(slots=True)
class Report:
    """What the migrations of one operator did, or would do."""

    operator: str
    seen: int = 0
    changed: int = 0
    deleted: int = 0
    failed: int = 0
    samples: list[Sample] = field(default_factory=list)
    failures: list[Sample] = field(default_factory=list)


class Refit:
    """
    Change stored rows as a fit demands. Give it all rows, those of the database ``rows`` last.

    Args:
        fit: The verdicts; none of them is a refusal.

        operators: Of the new code, by id, not opened: those whose state is changed or split.

        migrations: The pipeline's, by operator.

        only_report: Go on after an entry that fails, and look whether functions are pure.
    """

    def __init__(
        self,
        fit: Fit,
        operators: Mapping[str, Operator],
        migrations: Mapping[str, Sequence[Migration]],
        *,
        only_report: bool = False,
    ) -> None:
        self.reports: dict[str, Report] = {}
        self._lines = fit.by_operator()
        self._operators = operators
        self._migrations = migrations
        self._only_report = only_report
        self._spaces: dict[str, dict[int, set[Namespace]]] = {}
        """Namespaces by key group, of operators that are split."""

    def reads(self, database: str) -> bool:
        """Return whether rows of *database* have to be given: they are changed, or say what a part has."""
        line = self._line(database)
        return line is not None and (self.drops(database) or self._migrates(database, line) or _splits(line))

    def drops(self, database: str) -> bool:
        """Return whether all of *database* goes."""
        line = self._line(database)
        return line is not None and line.verdict in (Verdict.DROPPED, Verdict.FRESH)

    def rows(self, database: str, rows: Sequence[Row]) -> Sequence[Row]:
        """Return what becomes of some rows of a database of state, of a view, or of pending output."""
        line = self._line(database)
        if line is None:
            return rows
        if self.drops(database):
            return ()
        if database.startswith(_STATE) and _splits(line):
            self._note_spaces(line.operator, rows)
        return self._migrated(line, rows) if self._migrates(database, line) else rows

    def operator_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return what becomes of all rows of the database ``rows``, when all others were given."""
        kept: list[Row] = []
        by_part: dict[tuple[str, str], dict[int, bytes]] = {}
        for key, value in rows:
            operator, name, *part = key.decode().split(":")
            line = self._lines.get(operator)
            if line is not None and line.verdict in (Verdict.DROPPED, Verdict.FRESH):
                continue
            if part and line is not None and _splits(line):
                by_part.setdefault((operator, name), {})[int(part[0])] = value
            else:
                kept.append((key, value))
        for (operator, name), parts in by_part.items():
            kept += self._resplit(self._lines[operator], name, parts)
        return sorted(kept)

    # ---- parts

    def _note_spaces(self, operator: str, rows: Sequence[Row]) -> None:
        spaces = self._spaces.setdefault(operator, {})
        for head in {key[: _head_bytes(key)] for key, _ in rows}:
            spaces.setdefault(int.from_bytes(head[:2], "big"), set()).add(_namespace(head))

    def _resplit(self, line: Line, name: str, parts: Mapping[int, bytes]) -> Iterator[Row]:
        before, after = (line.was or {})["parts"], (line.now or {})["parts"]
        stored = [parts.get(part) for part in range(before)]
        values = [
            None if row is None else decode_value(unseal(row, f"rows, key {line.operator}:{name}")) for row in stored
        ]
        by_group = self._spaces.get(line.operator, {})
        spaces: list[set[Namespace]] = [
            {space for group in groups_of_part(part, after) for space in by_group.get(group, ())}
            for part in range(after)
        ]
        for part, value in enumerate(self._operators[line.operator].resplit(values, spaces)):
            if value is not None:
                yield f"{line.operator}:{name}:{part}".encode(), seal(encode_value(value))

    # ---- values

    def _migrates(self, database: str, line: Line) -> bool:
        return line.verdict is Verdict.MIGRATES and database.rpartition(":")[2] in _VALUES

    def _migrated(self, line: Line, rows: Sequence[Row]) -> list[Row]:
        assert line.was is not None, f"{line.operator} has nothing to migrate"
        report = self.reports.setdefault(line.operator, Report(line.operator))
        functions = [m.function for m in self._migrations[line.operator] if m.version > line.was.get("version", 1)]
        windows = line.was["kind"] in _KINDS_OF_WINDOWS
        made: list[Row] = []
        for key, sealed in rows:
            head = _head_bytes(key)
            encoded, held = read_row(f"state:{line.operator}", head, key, sealed)
            entry = _Entry(plain_key(decode_key(encoded)), _namespace(key[:head]), line.was["value"], held)
            report.seen += 1
            try:
                value = self._held(line.operator, functions, entry, windows=windows)
            except Exception as error:  # noqa: BLE001 - whatever a user's function raises names its entry
                self._failed(report, entry, error)
                continue
            if value is not None:
                made += encode_rows([key[:head]], [encoded], [value])
            self._note(report, entry, held, value)
        return made

    def _held(self, operator: str, functions: Sequence[Callable[..., Any]], entry: _Entry, *, windows: bool) -> Any:
        new = entry.through(functions)
        if self._only_report and encode_value(entry.through(functions)) != encode_value(new):
            raise TypeError("called twice with the same, it returned something else: it has to be a plain function")
        if new is None and windows:
            raise TypeError("it returned None, and an entry of a window can't be deleted. Return a value")
        return None if new is None else self._operators[operator].held(new)

    def _failed(self, report: Report, entry: _Entry, error: Exception) -> None:
        report.failed += 1
        if not self._only_report:
            raise PipelineError(
                f"the migration of operator {report.operator} can't handle the entry {entry}: {type(error).__name__}: "
                f"{error}. Nothing was changed. Mend the function; `streamactors savepoint migrate --dry-run` shows "
                "what fails."
            ) from error
        if len(report.failures) < _FAILURES:
            said = f"{type(error).__name__}: {error}"
            report.failures.append(Sample(entry.key, entry.namespace, entry.seen, said))

    def _note(self, report: Report, entry: _Entry, held: Any, value: Any) -> None:
        if value is None:
            report.deleted += 1
        elif encode_value(value) != encode_value(held):
            report.changed += 1
        if len(report.samples) < _SAMPLES:
            line = self._lines[report.operator]
            schema = (line.now or {}).get("value")
            report.samples.append(
                Sample(entry.key, entry.namespace, entry.seen, None if value is None else seen(schema, value))
            )

    # ---- whose it is

    def _line(self, database: str) -> Line | None:
        """Return the line of the operator that *database* belongs to."""
        if database.startswith(_STATE):
            return self._lines.get(database.split(":")[1])
        if database.startswith(_VIEW):
            return self._lines.get(f"view.{database.removeprefix(_VIEW)}")
        if database.startswith(_PENDING):
            return self._lines.get(database.removeprefix(_PENDING))
        return None


@dataclass(frozen=True, slots=True)
class _Entry:
    key: Any
    namespace: Namespace
    schema: Any
    held: Any

    @property
    def seen(self) -> Any:
        """The value as a person sees it, decoded anew each time: whoever gets it may change it."""
        return seen(self.schema, decode_value(encode_value(self.held)))

    def through(self, functions: Sequence[Callable[..., Any]]) -> Any:
        """Return what the functions make of it, one after the other."""
        value = self.seen
        for function in functions:
            if value is not None:
                value = function(self.key, self.namespace, value)
        return value

    def __str__(self) -> str:
        where = "" if self.namespace is None else f" of {self.namespace}"
        return f"{self.key!r}{where}, {self.seen!r:.200}"


def dry_run(refit: Refit, decoder: SavepointDecoder) -> list[Report]:
    """Let the migrations see all of a savepoint, and make nothing of it."""
    for block in decoder.blocks():
        if isinstance(block, RowsBlock) and block.database != OPERATOR_ROWS:
            refit.rows(block.database, block.rows)
    return list(refit.reports.values())


def changes_in_place(refit: Refit, database: str, rows: Sequence[Row]) -> Delta:
    """Return what has to be changed in a store for *rows* of a database to become what they should be."""
    new = refit.operator_rows(rows) if database == OPERATOR_ROWS else refit.rows(database, rows)
    wanted, before = dict(new), dict(rows)
    puts = [row for row in new if before.get(row[0]) != row[1]]
    return Delta(database, puts, [key for key in before if key not in wanted])


def _splits(line: Line) -> bool:
    was, now = line.was, line.now
    return was is not None and now is not None and was.get("parts") != now.get("parts")


def _head_bytes(key: bytes) -> int:
    """Return how long key group and namespace of a state's row are."""
    return 3 if key[2] == 0 else 3 + _NAMESPACE_BYTES


def _namespace(head: bytes) -> Namespace:
    return None if head[2] == 0 else int.from_bytes(head[3:], "big") - _BIAS
