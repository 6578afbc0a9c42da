"""Forgetting a key in a job's store: rows of its views, of its operators' state, of the output that waits. Synchronous.

For a job that does not run; the caller holds its lock. A running one has memtables and epochs on their way, out of
which the key would come back.

All that goes goes in one transaction (E1: what is stored is still the newest epoch, without the key). Nothing else in
it changes: positions, journal, attempt, stamps. So the job goes on from there as if the key had never come.

Output that waits for its target, or that a target has taken and no later checkpoint has removed, is the sink's own
bytes. Who knows its form gives an *editor*, which returns the payload without the key's records; of other sinks it is
only told whether they mention the key.

If we crash: the transaction is there or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from streamactors.core.codec import seal, unseal
from streamactors.core.keys import decode_key

from .rows import LONG, read_row
from .snapshot import Row
from .store import Store
from .subject import Subject
from .writing import Delta

VIEW = "view:"
STATE = "state:"
PENDING = "pending:"
"""What the names of the databases begin with."""

_CHUNK_ROWS = 4_096
_GROUP_BYTES = 2
_NO_NAMESPACE, _NAMESPACE_BYTES = 0, 9

Editor = Callable[[bytes], tuple[bytes, int]]
"""Returns a payload without the key's records, and how many those were."""

_Pending = msgspec.msgpack.Decoder(tuple[msgspec.Raw, msgspec.Raw, bytes])
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Forgotten:
    """What one store holds of a key; by name of view, of operator and state, of sink."""

    views: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    """Records of output that waits."""

    mentions: dict[str, int] = field(default_factory=dict)
    """Rows that stay and contain the key's text, by database."""

    unread: dict[str, int] = field(default_factory=dict)
    """Payloads that wait, in a form that is not known here, by sink; of a key with text, those that mention it."""

    deltas: list[Delta] = field(default_factory=list)
    """What is to be changed."""

    @property
    def rows(self) -> int:
        """How many rows and records go."""
        return sum(sum(counts.values()) for counts in (self.views, self.state, self.pending))


def look_for(store: Store, whose: Subject, editors: Mapping[str, Editor]) -> Forgotten:
    """Return what *store* holds of a key. *editors*: by sink. Cost: reads all rows of views and state."""
    found = Forgotten()
    with store.snapshot() as snapshot:
        databases = snapshot.databases()
    for database in databases:
        kind, _, name = database.partition(":")
        if kind + ":" == PENDING:
            _look_at_pending(store, database, name, whose, editors.get(name), found)
        elif kind + ":" in (VIEW, STATE):
            counts = found.views if kind + ":" == VIEW else found.state
            _look_at_rows(store, database, name, whose, counts, found)
    return found


def forget(store: Store, found: Forgotten) -> None:
    """Take what was found away, in one transaction."""
    if found.deltas:
        store.amend(found.deltas)


def _look_at_rows(
    store: Store, database: str, name: str, whose: Subject, counts: dict[str, int], found: Forgotten
) -> None:
    delta = Delta(database)
    for key, sealed in _rows(store, database):
        head = _head(database, key)
        encoded = key[head:]
        if encoded[:1] == LONG:
            encoded, _ = read_row(store.place(database), head, key, sealed)
        if whose.has_canonical(decode_key(encoded)):
            delta.deletes.append(key)
        elif whose.is_mentioned(key) or whose.is_mentioned(sealed):
            found.mentions[database] = found.mentions.get(database, 0) + 1
    if delta.deletes:
        counts[name] = len(delta.deletes)
        found.deltas.append(delta)


def _head(database: str, key: bytes) -> int:
    """Return the length of what stands in front of a row's key: nothing in a view, group and namespace in state."""
    if database.startswith(VIEW):
        return 0
    return _GROUP_BYTES + (1 if key[_GROUP_BYTES] == _NO_NAMESPACE else _NAMESPACE_BYTES)


def _look_at_pending(
    store: Store, database: str, sink: str, whose: Subject, editor: Editor | None, found: Forgotten
) -> None:
    delta = Delta(database)
    for key, sealed in _rows(store, database):
        stamp, expect, payload = _Pending.decode(unseal(sealed, f"database {store.place(database)}, key {key.hex()}"))
        if editor is None:
            if whose.needle is None or whose.is_mentioned(payload):
                found.unread[sink] = found.unread.get(sink, 0) + 1
            continue
        left, records = editor(payload)
        if records:
            delta.puts.append((key, seal(_encode((stamp, expect, left)))))
            found.pending[sink] = found.pending.get(sink, 0) + records
    if delta.puts:
        found.deltas.append(delta)


def _rows(store: Store, database: str) -> Iterator[Row]:
    after: bytes | None = None
    while True:
        with store.snapshot() as snapshot:
            rows = snapshot.scan(database, after=after, limit=_CHUNK_ROWS)
        yield from rows
        if len(rows) < _CHUNK_ROWS:
            return
        after = rows[-1][0]
