"""Swapping: what becomes of the sinks' targets when another version is served.

A version that is not served writes targets of its own, which bear its label: topic NAME.LABEL, table NAME__LABEL. When
it is served they become those that readers know, and the old version's bear a label. Each version's pending output
finds its own stamps all the while, because they move with the target: those of a topic are inside it, those of a table
are renamed in the same transaction.

    topics     renamed, one after the other (durable/exchange.py): between two of them readers see some of the new
    tables     renamed in one transaction a table (connectors/sqlite/exchange.py)
    folders    not at all: each version goes on in its own folder, of whose name readers are told

It happens under the catalogue's lock, while both versions rest, and after the catalogue says so (``exchanging``). So
whoever comes next finds either nothing done, or that it has to be completed; each target knows how far it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from streamactors.core.connectors import Shadowed
from streamactors.core.errors import PipelineError
from streamactors.core.ports import Disk
from streamactors.durable.catalogue import Catalogue, Version, Versions
from streamactors.durable.exchange import exchange_topic, refuse_exchange, remove_folder, remove_topic, shadow_name
from streamactors.graph.plan import RegionPlan

Owners = tuple[str | None, str | None]
"""Labels of the old and of the new version; None for one that does not write the target."""


def addresses_of(plans: Iterable[RegionPlan], following: str | None) -> list[tuple[str, ...]]:
    """Return where the sinks of *plans* write; refuse one that two versions would write together."""
    addresses = []
    for sink in (sink for plan in plans for sink in plan.sinks()):
        if isinstance(sink, Shadowed):
            addresses.append(sink.address)
        elif following is not None:
            raise PipelineError(
                f"sink {sink.id} has one target for all versions, which {following} writes: this version would write "
                "it too. Let this version write elsewhere, or give the sink an address (core.connectors.Shadowed)."
            )
    return addresses


def complete(catalogue: Catalogue, disk: Disk, data_dir: Path, job: str, now_ms: int) -> Versions | None:
    """Do what is left of an exchange, and let the new version be served; None: there was nothing to do."""
    done = False

    def exchange(found: Versions) -> None:
        nonlocal done
        if found.handover is not None and found.handover.exchanging:
            for address, owners in _both(found):
                _exchange(disk, data_dir, job, address, owners)
            found.serve(now_ms)
            done = True

    found = catalogue.read()
    if found is None or found.handover is None or not found.handover.exchanging:
        return None
    versions = catalogue.change(job, found.serving, now_ms, exchange)
    return versions if done else None


def refuse_what_is_in_the_way(disk: Disk, data_dir: Path, found: Versions) -> None:
    """Refuse an exchange that would meet somebody else's topic; before it is noted that it begins."""
    for address, (old, new) in _both(found):
        if address[0] == "topic":
            refuse_exchange(disk, data_dir / "log", address[1], old, new)


def folders_of(version: Version) -> list[str]:
    """Return the folders that *version* writes, whether it is served or not."""
    return [
        folder if version.first else _own_folder(folder, version.label)
        for kind, folder, *_ in version.targets
        if kind == "folder"
    ]


def remove_shadows(disk: Disk, data_dir: Path, job: str, version: Version) -> None:
    """Remove what a version has written that is not served; harmless when repeated."""
    for kind, place, *rest in version.targets:
        if kind == "topic":
            remove_topic(disk, data_dir / "log", shadow_name(place, version.label))
        elif kind == "sqlite":
            from connectors.sqlite.exchange import remove_table  # late: who has no such sink needs no SQLite

            table, sink = rest
            remove_table(Path(place), job, table, sink, version.label)
        elif kind == "folder" and not version.first:
            remove_folder(disk, Path(_own_folder(place, version.label)))


def _both(found: Versions) -> Iterator[tuple[tuple[str, ...], Owners]]:
    """Yield each target of either version, and who of the two writes it."""
    assert found.handover is not None, "nobody was asked for"
    old, new = found.version(found.serving), found.version(found.handover.to)
    old_targets, new_targets = ([tuple(target) for target in version.targets] for version in (old, new))
    for address in dict.fromkeys([*old_targets, *new_targets]):
        yield address, (old.label if address in old_targets else None, new.label if address in new_targets else None)


def _exchange(disk: Disk, data_dir: Path, job: str, address: tuple[str, ...], owners: Owners) -> None:
    kind, place, *rest = address
    if kind == "topic":
        exchange_topic(disk, data_dir / "log", place, *owners)
    elif kind == "sqlite":
        from connectors.sqlite.exchange import exchange_table  # late: as above

        table, sink = rest
        exchange_table(Path(place), job, table, sink, *owners)


def _own_folder(folder: str, label: str) -> str:
    return str(Path(folder).with_name(f"{Path(folder).name}.{label}"))
