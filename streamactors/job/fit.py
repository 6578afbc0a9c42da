"""Fit: whether other code can go on with stored state, operator by operator, and what that takes. Pure.

State is found again by operator id. For each operator the schema that was stored is compared with the one that the code
wants (flow/kept.py), and gets a verdict:

    same         goes on
    reads        goes on: what is stored can be read by the new type as it is (a field more with a default, ...)
    migrates     the pipeline's migration functions make the new value of the old one
    splits       the same in another number of parts: state is stored by key group, what is kept by part is split anew
    starts empty    the operator is new, or what is stored does not fit; only when somebody said so (``fresh``)
    dropped      the operator is gone; only when somebody said so (``dropped``)
    refused      anything else

What no flag accepts: another source in a region, or a source somewhere else. Offsets, event time and the journal are
those of the sources that were read, and mean nothing in others. A region that is wholly new begins at the beginning.

``fresh`` only ever concerns what does not fit: a flag that stays in a unit file must not empty what fits by now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from streamactors.core.errors import PipelineError
from streamactors.core.times import shown as shown_time
from streamactors.flow.kept import differences
from streamactors.flow.kept import shown as shown_schema
from streamactors.graph.pipeline import Migration, Pipeline
from streamactors.graph.plan import SOURCE, RegionPlan

_BESIDE = ("value", "parts", "version")
"""What is compared by rules of its own; all else in a schema has to be equal."""

_CELL_MAX = 60

Plan = dict[str, dict[str, Any]]
"""Signatures by region, as ``Store.plan`` has them."""

Schema = dict[str, Any]


class Verdict(Enum):
    """See the module's header."""

    SAME = "same"
    READS = "reads"
    MIGRATES = "migrates"
    SPLITS = "splits"
    FRESH = "starts empty"
    DROPPED = "dropped"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Line:
    """The verdict on one operator."""

    operator: str
    was: Schema | None
    now: Schema | None
    verdict: Verdict
    why: str = ""
    where: str = ""
    """``file.py:line`` of the operator."""

    def cells(self) -> list[str]:
        """Return operator, what it was, what it is, and the verdict, as a table shows them."""
        place = f"{self.operator} ({self.where})" if self.where else self.operator
        verdict = self.verdict.value + (f": {self.why}" if self.why else "")
        return [place, told(self.was, "not there"), told(self.now, "gone"), verdict]


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdicts on all operators of a job."""

    lines: list[Line]
    regions_gone: frozenset[str] = frozenset()

    @property
    def refused(self) -> list[Line]:
        """Operators that can't go on."""
        return [line for line in self.lines if line.verdict is Verdict.REFUSED]

    @property
    def changed(self) -> list[Line]:
        """Operators that are not as they were."""
        return [line for line in self.lines if line.verdict is not Verdict.SAME]

    @property
    def rewrites(self) -> bool:
        """Whether what is stored has to be changed."""
        stays = {Verdict.SAME, Verdict.READS}
        return bool(self.regions_gone) or any(
            line.was is not None and (line.verdict not in stays or _parts_changed(line)) for line in self.lines
        )

    def by_operator(self) -> dict[str, Line]:
        """Return the lines by their operators' ids."""
        return {line.operator: line for line in self.lines}

    def table(self) -> str:
        """Return what is not as it was, as a table of text."""
        rows = [["operator", "was", "is", "verdict"], *(line.cells() for line in self.changed)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )

    def require(self, what: str) -> None:
        """Raise PipelineError when an operator can't go on; *what* says whose state it is."""
        if self.refused:
            raise PipelineError(
                f"{what}:\n{self.table()}\n"
                "State is found again by operator id, and nothing of it was changed. Undo the change, accept it as the "
                "table says, or give the pipeline another name and let it start from the log."
            )


def wanted_plan(pipeline: Pipeline, plans: Sequence[RegionPlan]) -> Plan:
    """Return what the code wants to find, by region; an operator with migrations says which version of state."""
    wanted = {region.id: region.signature() for region in plans}
    operators = {name: schema for signature in wanted.values() for name, schema in signature["operators"].items()}
    for operator, migrations in pipeline.migrations.items():
        if operators.get(operator, {}).get("value") is None:
            keeping = ", ".join(sorted(name for name, schema in operators.items() if "value" in schema)) or "none"
            raise PipelineError(
                f"pipeline {pipeline.name}: migrate({operator!r}) names no operator with state of users. Those are: "
                f"{keeping}."
            )
        if migrations:
            operators[operator]["version"] = migrations[-1].version
    return wanted


def compare(
    stored: Plan,
    wanted: Plan,
    *,
    migrations: Mapping[str, Sequence[Migration]],
    fresh: Collection[str] = (),
    dropped: Collection[str] = (),
    places: Mapping[str, str] | None = None,
) -> Fit:
    """Return the verdicts on all operators of the regions that are stored; other regions are new as a whole."""
    gone = frozenset(stored.keys() - wanted.keys())
    lines = []
    for region, signature in stored.items():
        was, now = signature["operators"], wanted.get(region, {"operators": {}})["operators"]
        for operator in [*was, *(name for name in now if name not in was)]:
            old, new = was.get(operator), now.get(operator)
            verdict, why = _judge(
                operator, old, new, migrations.get(operator, ()), fresh, dropped, region_gone=region in gone
            )
            lines.append(Line(operator, old, new, verdict, why, (places or {}).get(operator, "")))
    return Fit(lines, gone)


def _judge(
    operator: str,
    was: Schema | None,
    now: Schema | None,
    migrations: Sequence[Migration],
    fresh: Collection[str],
    dropped: Collection[str],
    *,
    region_gone: bool,
) -> tuple[Verdict, str]:
    if was is None or now is None:
        schema = was or now
        assert schema is not None, f"{operator} is neither stored nor wanted"
        if schema["kind"] == SOURCE and not region_gone:
            return Verdict.REFUSED, "the sources of a region stay as they are; begin anew, from the log"
        return _appeared(operator, fresh) if was is None else _disappeared(operator, dropped)
    problems, notes = _against(was, now), list[str]()
    pending = [m for m in migrations if m.version > was.get("version", 1)]
    if was["kind"] == SOURCE:
        return (Verdict.REFUSED, "; ".join(problems)) if problems else (Verdict.SAME, "")
    values = [] if "value" not in was or "value" not in now else list(differences(was["value"], now["value"]))
    if not pending:
        problems += [found.what for found in values if not found.reads]
        notes += [found.what for found in values if found.reads]
    if not problems:
        return _going_on(was, now, notes, pending)
    if operator in fresh:
        return Verdict.FRESH, ""
    return Verdict.REFUSED, f"{'; '.join(problems)}. {_remedy(operator, values, migrations)}"


def _appeared(operator: str, fresh: Collection[str]) -> tuple[Verdict, str]:
    if operator in fresh:
        return Verdict.FRESH, ""
    return Verdict.REFUSED, f"it would start empty; accept that with --fresh {operator}"


def _disappeared(operator: str, dropped: Collection[str]) -> tuple[Verdict, str]:
    if operator in dropped:
        return Verdict.DROPPED, ""
    return Verdict.REFUSED, f"its state would be lost; accept that with --drop {operator}"


def _against(was: Schema, now: Schema) -> list[str]:
    """Return what makes stored rows mean something else, beside their values."""
    names = [name for name in {**was, **now} if name not in _BESIDE and was.get(name) != now.get(name)]
    return [f"{name} {was.get(name, 'none')} became {now.get(name, 'none')}" for name in names]


def _going_on(was: Schema, now: Schema, notes: list[str], pending: Sequence[Migration]) -> tuple[Verdict, str]:
    if was.get("parts") != now.get("parts"):
        notes = [*notes, f"{was.get('parts')} parts become {now.get('parts')}"]
    why = "; ".join(notes)
    if pending:
        versions = f"version {was.get('version', 1)} becomes {pending[-1].version}"
        return Verdict.MIGRATES, f"{versions}; {why}" if why else versions
    if was.get("parts") != now.get("parts"):
        return Verdict.SPLITS, why
    return (Verdict.READS, why) if notes else (Verdict.SAME, "")


def _remedy(operator: str, values: Sequence[Any], migrations: Sequence[Migration]) -> str:
    empty = f"--fresh {operator} lets it start empty"
    if not values:
        return empty[0].upper() + empty[1:]
    if migrations:
        return (
            f"Its migrations end with version {migrations[-1].version}, which it has: number the next one; or {empty}"
        )
    return f"Register @pipeline.migrate({operator!r}), or {empty}"


def _parts_changed(line: Line) -> bool:
    return line.was is not None and line.now is not None and line.was.get("parts") != line.now.get("parts")


def kept_versions(stored: Plan, wanted: Plan) -> Plan:
    """Return *wanted* with the version of state that an operator has, where the code has no migrations (any more)."""
    known = {name: schema for signature in stored.values() for name, schema in signature["operators"].items()}
    for signature in wanted.values():
        for operator, schema in signature["operators"].items():
            versions = [known.get(operator, {}).get("version", 1), schema.get("version", 1)]
            if max(versions) > 1:
                schema["version"] = max(versions)
    return wanted


def places_of(plans: Iterable[RegionPlan]) -> dict[str, str]:
    """Return where each operator was written."""
    return {node.id: node.where for region in plans for stage in region.stages for node in stage.nodes}


def told(schema: Schema | None, without: str) -> str:
    """Return an operator's schema in a few words."""
    if schema is None:
        return without
    kind, parts = schema["kind"], schema.get("parts", 1)
    words = [str(kind)]
    if kind == SOURCE:
        words.append(str(schema.get("place", "")))
    if "size" in schema:
        words.append(shown_time(schema["size"]))
        if schema["slide"] != schema["size"]:
            words.append(f"every {shown_time(schema['slide'])}")
        if schema["offset"]:
            words.append(f"from {shown_time(schema['offset'])}")
    if "ttl" in schema:
        words.append(f"for {shown_time(schema['ttl'])} of {schema['by']}")
    if "value" in schema:
        words.append(shown_schema(schema["value"]))
    if schema.get("key"):
        words.append(f"by {schema['key']}")
    if parts != 1:
        words.append(f"in {parts} parts")
    text = " ".join(words)
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 1] + "…"
