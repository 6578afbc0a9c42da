"""Keyed state: a dict for each namespace in front of LMDB, whose changes can be frozen in O(1).

A barrier must not copy state and must not wait for the disk. It needs to do neither, because of one rule:

  Rule. Stored values are immutable: a value is replaced, never changed in place.

A change is therefore a reference in a dict, and the changes of an epoch are a dict of their own, a *memtable*:

    live      everything known now: key → value, or None for "known to be absent"     what reads look at, alone
    dirty     what changed since the last barrier: key → value, None for a delete
    frozen    the memtables of the epochs being encoded or committed, at most two     never changed again

A write goes to live and to dirty (two ``dict.update``). To freeze is to set dirty aside and begin an empty one: the
frozen memtable still refers to the values as they were, whatever is written later. When the epoch's commit has
returned, its memtable is dropped. Nothing is merged, neither on a read nor after a commit; what it costs is a second
dict entry for each key that changed, until its commit has returned.

  (K1) A key in dirty or frozen is in live too, with its newest value: such entries are never evicted.
  (K2) An entry of live that is in neither is equal to LMDB, or absent in both. Only such entries are evicted.

(K1) makes a read of LMDB sound while a commit runs in another thread: what is looked up there is in no memtable, so the
commit does not change it, and before or after make no difference.

A namespace is *complete* when what live doesn't have LMDB doesn't have either, or has only until a pending drop is
committed. Then a miss is an answer: no look-up. It begins complete when the store held nothing of this part, or when
the operator says that it is new (``born``), or by ``drop``; eviction ends it.

``drop`` of a large namespace is a mark on its memtable: on commit the namespace's rows are deleted by prefix, before
what the same epoch put there afterwards. While the mark is pending LMDB still has the old rows, so the namespace must
stay complete. It does: whatever it holds was put after the drop, stands in a memtable, and is not evicted (K1).

If we crash: dicts are gone, LMDB has the last committed epoch, the records after it come again.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from itertools import islice
from typing import Any, Protocol

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.keys import CanonicalKey, decode_key, encode_key, key_group
from streamactors.core.limits import CACHE_ENTRIES_MAX, DIRTY_BYTES_MAX, DIRTY_ENTRIES_MAX, KEY_GROUPS, TURN_ENTRIES

from .memtable import FrozenEpoch, MemTable
from .rows import GROUP_BYTES, Namespace, encode_keys, namespace_bytes, read_rows, row_key
from .store import Store
from .writing import Delta

_ROWS_WEIGHED = 256
"""Rows of an epoch whose bytes are counted: a few microseconds, however many there are."""


class Durable(Protocol):
    """
    What survives: frozen at a barrier, encoded in slices, handed over, and told of the commit.

    The calls for one epoch come in this order: ``freeze``, ``encode`` until it returns True, ``hand_over``, and
    ``committed`` at any time later. An epoch freezes only after the one before was handed over; so at most two are
    frozen at a time, one in commit, one being encoded. None of the calls waits. After a failed commit nothing is
    called any more: the region restarts with new objects.
    """

    @property
    def full(self) -> bool:
        """Whether more is waiting to be durable than should: an epoch ought to start early. Asked after each batch."""

    def freeze(self, epoch: int) -> None:
        """Set aside what changed since the last freeze: it belongs to *epoch*. O(1)."""

    def encode(self, entries: int) -> bool:
        """Encode up to *entries* frozen entries; return whether none is left."""

    def hand_over(self) -> list[Delta]:
        """Return what the epoch that was encoded changed in the store; empty when nothing did."""

    def committed(self, epoch: int) -> None:
        """Take note that *epoch* is durable."""


class _Space:
    """What is known of one namespace."""

    __slots__ = ("complete", "live")

    def __init__(self, *, complete: bool) -> None:
        self.live: dict[CanonicalKey, Any] = {}
        self.complete = complete


class KeyedState:
    """
    The state of one keyed operator and part: key → value in namespaces. See the module's header.

    Keys are canonical (core/keys.py). Values are whatever MessagePack holds, except None, which means "absent"; they
    must not be changed in place, and come back from the store as MessagePack returns them (a tuple as a list).
    """

    def __init__(
        self,
        store: Store,
        database: str,
        groups: range = range(KEY_GROUPS),
        *,
        cache_max: int = CACHE_ENTRIES_MAX,
        dirty_max: int = DIRTY_ENTRIES_MAX,
    ) -> None:
        self.database = database
        self.groups = groups
        self._store = store
        self._cache_max = cache_max
        self._dirty_max = dirty_max
        self._dirty: dict[Namespace, MemTable] = {}
        self._frozen: list[FrozenEpoch] = []  # oldest first
        self._row_bytes = 0.0  # of a row, encoded, in the last epoch that was handed over
        self._spaces: dict[Namespace, _Space] = {}
        self._fresh = self._nothing_stored()
        """Whether a namespace without a _Space has nothing in LMDB."""

    # ---- entries

    def get_many(self, namespace: Namespace, keys: Collection[CanonicalKey]) -> list[Any]:
        """
        Return the value of each key, None where there is none.

        Cost: one dict look-up a key; keys that memory doesn't know are read from LMDB together.
        """
        space = self._spaces.get(namespace)
        if space is None:
            if self._fresh:
                return [None] * len(keys)
            space = self._space(namespace)
        live = space.live
        values = list(map(live.get, keys))
        if not space.complete and None in values:
            unknown = [key for key, value in zip(keys, values, strict=True) if value is None and key not in live]
            if unknown:
                self._fetch(namespace, live, unknown)
                values = list(map(live.get, keys))
                self._evict()
        return values

    def put_many(self, namespace: Namespace, updates: dict[CanonicalKey, Any]) -> None:
        """Replace the values of many keys; None deletes."""
        table = self._dirty.get(namespace)
        if table is None:
            table = self._dirty[namespace] = MemTable()
        space = self._spaces.get(namespace)
        if space is None:
            space = self._space(namespace)
        table.entries.update(updates)
        space.live.update(updates)

    def get(self, namespace: Namespace, key: CanonicalKey) -> Any:
        """Return the value of one key, or None."""
        return self.get_many(namespace, (key,))[0]

    def put(self, namespace: Namespace, key: CanonicalKey, value: Any) -> None:
        """Replace the value of one key."""
        self.put_many(namespace, {key: value})

    def delete(self, namespace: Namespace, key: CanonicalKey) -> None:
        """Delete one key; harmless when it is absent."""
        self.put_many(namespace, {key: None})

    # ---- namespaces

    def born(self, namespace: Namespace) -> None:
        """Say that nothing is stored under *namespace*, before its first use; a namespace in use stays as it is."""
        if namespace not in self._spaces:
            self._spaces[namespace] = _Space(complete=True)

    def items(self, namespace: Namespace) -> list[tuple[CanonicalKey, Any]]:
        """Return all entries of a namespace in the order of their encoded keys."""
        entries = [(encode_key(key), key, value) for key, value in self._found(namespace).items() if value is not None]
        entries.sort(key=_encoded)
        return [(key, value) for _, key, value in entries]

    def entries(self, namespace: Namespace) -> dict[CanonicalKey, Any]:
        """Return a copy of all entries of a namespace, in no order that means anything. Cost: no more than copying."""
        return _present(self._found(namespace))

    def is_large(self, namespace: Namespace) -> bool:
        """Return whether to go through a namespace may take longer than a turn of the loop."""
        space = self._spaces.get(namespace)
        if space is None:
            return not self._fresh
        return not space.complete or len(space.live) > TURN_ENTRIES

    def entries_in_turns(self, namespace: Namespace) -> Generator[None, None, dict[CanonicalKey, Any]]:
        """Return what ``entries`` returns; yield between turns. The namespace must not change meanwhile."""
        space = self._space(namespace)
        if not space.complete:
            stored: dict[CanonicalKey, Any] = {}
            for group in self.groups:
                stored.update(self._stored(namespace, [group]))
                yield
            return _present(self._joined(space, stored))
        return _present(space.live)

    def drop(self, namespace: Namespace) -> None:
        """Delete a whole namespace. What is put there afterwards is new."""
        space = self._spaces.get(namespace)
        if space is None and self._fresh:
            return
        if space is not None and space.complete and len(space.live) <= len(self.groups):
            # All its keys are known and few: cheaper to delete one by one than to look through every key group.
            self.put_many(namespace, dict.fromkeys(space.live))
            return
        self._spaces[namespace] = _Space(complete=True)
        self._dirty[namespace] = MemTable(dropped=True)

    @property
    def entries_dirty(self) -> int:
        """Entries that are not yet durable."""
        tables = [*self._dirty.values(), *(table for epoch in self._frozen for table in epoch.tables.values())]
        return sum([len(table.entries) for table in tables])

    @property
    def full(self) -> bool:
        entries = self.entries_dirty
        return entries >= self._dirty_max or entries * self._row_bytes >= DIRTY_BYTES_MAX

    # ---- checkpoints

    def freeze(self, epoch: int) -> None:
        assert len(self._frozen) < 2, f"{self.database}: epoch {epoch} froze while two were pending"
        assert not self._frozen or self._frozen[-1].encoded, f"{self.database}: {epoch} froze before the last hand-over"
        self._frozen.append(FrozenEpoch(epoch, self._dirty, self.groups, self.database))
        self._dirty = {}

    def encode(self, entries: int) -> bool:
        return self._frozen[-1].encode(entries)

    def hand_over(self) -> list[Delta]:
        epoch = self._frozen[-1]
        assert epoch.encoded, f"{self.database}: epoch {epoch.epoch} was handed over before it was encoded"
        delta, epoch.delta = epoch.delta, Delta(self.database)
        if sample := delta.puts[:: len(delta.puts) // _ROWS_WEIGHED + 1]:
            self._row_bytes = sum([len(key) + len(value) for key, value in sample]) / len(sample)
        return [delta] if delta.puts or delta.deletes or delta.prefixes else []

    def committed(self, epoch: int) -> None:
        done = self._frozen.pop(0)
        assert done.epoch == epoch, f"{self.database}: epoch {epoch} was committed, {done.epoch} was pending"
        for namespace, key in done.gone:
            self._forget_absent(namespace, key)
        for namespace in done.tables:
            space = self._spaces.get(namespace)
            if space is not None and space.complete and not space.live and not self._pending(namespace):
                del self._spaces[namespace]  # nothing there, here or in LMDB
        self._evict()

    # ---- inside

    def _space(self, namespace: Namespace) -> _Space:
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = _Space(complete=self._fresh)
        return space

    def _found(self, namespace: Namespace) -> dict[CanonicalKey, Any]:
        """Return all that is known of a namespace, here and in LMDB; None for a key that is known to be absent."""
        if namespace not in self._spaces and self._fresh:
            return {}
        space = self._space(namespace)
        return space.live if space.complete else self._joined(space, self._stored(namespace, self.groups))

    def _joined(self, space: _Space, stored: dict[CanonicalKey, Any]) -> dict[CanonicalKey, Any]:
        """Return all of a namespace: *stored*, as what is known here changes it. Keep it if there is room."""
        found = {**stored, **space.live}
        if self._known() + len(found) - len(space.live) <= self._cache_max:
            space.live, space.complete = found, True
        return found

    def _pending(self, namespace: Namespace) -> list[MemTable]:
        """Return the memtables that hold something of a namespace: dirty and frozen."""
        layers = [self._dirty, *(epoch.tables for epoch in self._frozen)]
        return [layer[namespace] for layer in layers if namespace in layer]

    def _forget_absent(self, namespace: Namespace, key: CanonicalKey) -> None:
        """Forget that *key* is absent, if that is what an entry says and no memtable needs it (K1)."""
        space = self._spaces.get(namespace)
        if space is None or space.live.get(key, self) is not None:
            return
        if not any(key in table.entries for table in self._pending(namespace)):
            del space.live[key]

    def _known(self) -> int:
        return sum([len(space.live) for space in self._spaces.values()])

    def _evict(self) -> None:
        """Forget the oldest clean entries while there are more than the limit (K1, K2)."""
        excess = self._known() - self.entries_dirty - self._cache_max
        if excess <= 0:
            return
        excess += self._cache_max // 64  # a dict whose front was deleted is slow to begin: not for a few entries
        for namespace, space in self._spaces.items():
            held = [table.entries for table in self._pending(namespace)]
            clean = (key for key in space.live if not any(key in entries for entries in held))
            victims = list(islice(clean, excess))
            for key in victims:
                del space.live[key]
            if victims:
                space.complete = False
                excess -= len(victims)
            if excess <= 0:
                return

    # ---- LMDB

    def _nothing_stored(self) -> bool:
        with self._store.snapshot() as snapshot:
            if not snapshot.count(self.database):
                return True
            return not any(snapshot.scan(self.database, GROUP_BYTES[group], limit=1) for group in self.groups)

    def _fetch(self, namespace: Namespace, live: dict[CanonicalKey, Any], keys: list[CanonicalKey]) -> None:
        """Read *keys* from LMDB into *live*; what is not there is noted as absent."""
        tail = namespace_bytes(namespace)
        encoded = encode_keys(keys)
        wanted = dict(zip(encoded, keys, strict=True))
        stored = [row_key(GROUP_BYTES[key_group(key)] + tail, key) for key in encoded]
        with self._store.snapshot() as snapshot:
            rows = snapshot.get_many(self.database, sorted(stored))
        live.update(dict.fromkeys(keys))
        found = read_rows(self._store.place(self.database), 2 + len(tail), rows)
        live.update({wanted[key]: value for key, value in found})

    def _stored(self, namespace: Namespace, groups: Iterable[int]) -> dict[CanonicalKey, Any]:
        """Return what LMDB has of a namespace in some key groups."""
        tail = namespace_bytes(namespace)
        with self._store.snapshot() as snapshot:
            rows = [row for group in groups for row in snapshot.scan(self.database, GROUP_BYTES[group] + tail)]
        found = read_rows(self._store.place(self.database), 2 + len(tail), rows)
        return {decode_key(encoded): value for encoded, value in found}


class OperatorRow:
    """One small value of an operator and part. None until something was set."""

    def __init__(self, store: Store, database: str, name: str) -> None:
        self.database = database
        self.name = name
        self._key = name.encode()
        with store.snapshot() as snapshot:
            stored = snapshot.get(database, self._key)
        self._encoded = b"" if stored is None else unseal(stored, f"database {store.place(database)}, key {name}")
        self._frozen: list[Delta] = []
        self.full = False  # it is small
        self.value: Any = decode_value(self._encoded) if self._encoded else None
        """The value; after a restart that of the last checkpoint."""

    def set(self, value: Any) -> None:
        """Replace the value."""
        self.value = value

    def freeze(self, epoch: int) -> None:
        encoded = b"" if self.value is None else encode_value(self.value)
        self._frozen = []
        if encoded != self._encoded:
            self._encoded = encoded
            puts, deletes = ([(self._key, seal(encoded))], []) if encoded else ([], [self._key])
            self._frozen = [Delta(self.database, puts, deletes)]

    def encode(self, entries: int) -> bool:
        return True

    def hand_over(self) -> list[Delta]:
        deltas, self._frozen = self._frozen, []
        return deltas

    def committed(self, epoch: int) -> None:
        """Nothing is kept for it."""


def _present(found: dict[CanonicalKey, Any]) -> dict[CanonicalKey, Any]:
    """Return a copy without the keys that are known to be absent."""
    return {k: value for k, value in found.items() if value is not None} if None in found.values() else found.copy()


def _encoded(entry: tuple[bytes, CanonicalKey, Any]) -> bytes:
    return entry[0]
