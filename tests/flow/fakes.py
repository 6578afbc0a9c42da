"""State for operators that are tested alone: in dicts, and the real one in a store; and a driver that restarts.

The one in dicts is there for the number of examples that it allows. Its snapshots go through bytes, as the real one's
do, so that a tuple comes back as a list.
"""

from __future__ import annotations

from random import Random

from streamactors.core.codec import decode_value, encode_value
from streamactors.core.keys import decode_key, encode_key
from streamactors.core.limits import ENCODE_SLICE_ENTRIES
from streamactors.core.times import MIN_TIME
from streamactors.durable.realtime import RealClock
from streamactors.durable.state import KeyedState, OperatorRow
from streamactors.durable.store import Checkpoint, Store
from streamactors.flow.operator import OperatorContext


class DictState:
    """KeyedState without a store behind it."""

    def __init__(self):
        self.spaces = {}

    def get_many(self, ns, keys):
        return list(map(self.spaces.get(ns, {}).get, keys))

    def put_many(self, ns, updates):
        space = self.spaces.setdefault(ns, {})
        space.update(updates)
        for key in [key for key, value in updates.items() if value is None]:
            del space[key]

    def get(self, ns, key):
        return self.spaces.get(ns, {}).get(key)

    def put(self, ns, key, value):
        self.put_many(ns, {key: value})

    def items(self, ns):
        return sorted(self.spaces.get(ns, {}).items(), key=lambda item: encode_key(item[0]))

    def entries(self, ns):
        return dict(self.spaces.get(ns, {}))

    def drop(self, ns):
        self.spaces.pop(ns, None)

    def born(self, ns):
        assert not self.spaces.get(ns), f"namespace {ns} is not new"


class DictRow:
    """OperatorRow without a store behind it."""

    def __init__(self):
        self.value = None

    def set(self, value):
        self.value = value


class Part:
    """What one operator keeps in dicts, and the context that opens it."""

    def __init__(self, snapshot=None):
        self.states, self.rows, self.saved = {}, {}, snapshot
        for name, entries in (snapshot or {}).get("states", {}).items():
            for ns, key, value in entries:
                self.state(name).put(ns, decode_key(key), decode_value(value))
        for name, value in (snapshot or {}).get("rows", {}).items():
            self.row(name).set(decode_value(value))

    def state(self, name):
        return self.states.setdefault(name, DictState())

    def row(self, name):
        return self.rows.setdefault(name, DictRow())

    def context(self, watermark=MIN_TIME):
        return OperatorContext("job/op[0]", self.state, self.row, watermark, RealClock(), Random(0))

    def checkpoint(self):
        """Note what a restart goes back to."""
        self.saved = self.snapshot()

    def restarted(self):
        """Return what is there after a crash."""
        return Part(self.saved)

    def snapshot(self):
        return {
            "states": {
                name: [
                    (ns, encode_key(key), encode_value(value))
                    for ns, space in state.spaces.items()
                    for key, value in space.items()
                ]
                for name, state in self.states.items()
            },
            "rows": {name: encode_value(row.value) for name, row in self.rows.items() if row.value is not None},
        }


class StoredPart:
    """What one operator keeps in a real store; a restart opens the store anew."""

    def __init__(self, folder, epoch=0):
        self.folder, self.epoch = folder, epoch
        self.store = Store.open(folder, sync=False)
        self.attempt = self.store.begin_attempt("region")
        self.states, self.rows = {}, {}

    def state(self, name):
        return self.states.setdefault(name, KeyedState(self.store, f"state:{name}"))

    def row(self, name):
        return self.rows.setdefault(name, OperatorRow(self.store, "rows", name))

    def context(self, watermark=MIN_TIME):
        return OperatorContext("job/op[0]", self.state, self.row, watermark, RealClock(), Random(0))

    def checkpoint(self):
        self.epoch += 1
        durables = [*self.states.values(), *self.rows.values()]
        for durable in durables:
            durable.freeze(self.epoch)
            while not durable.encode(ENCODE_SLICE_ENTRIES):
                pass
        deltas = [delta for durable in durables for delta in durable.hand_over()]
        self.store.commit(Checkpoint("region", self.attempt, self.epoch, None, deltas=deltas))
        for durable in durables:
            durable.committed(self.epoch)

    def restarted(self):
        self.store.close()
        return StoredPart(self.folder, self.epoch)


class Driver:
    """Run one operator by a list of steps; ``restore`` checkpoints it and replaces it by a new one."""

    def __init__(self, make, part=None):
        self.make = make
        self.out, self.late, self.final = [], [], []
        self.watermark = MIN_TIME
        self._open(part or Part())

    def _open(self, part):
        self.part, self.operator = part, self.make()
        self.operator.emit, self.operator.emit_late = self.out.append, self.late.append
        self.operator.emit_final = self.final.append
        self.operator.open(part.context(self.watermark))

    def checkpoint(self):
        self.part.checkpoint()

    def crash(self):
        """Go back to the last checkpoint."""
        self._open(self.part.restarted())

    def restore(self):
        self.checkpoint()
        self.crash()

    def batch(self, batch):
        self.operator.on_batch(batch)

    def watermark_to(self, time):
        self.operator.on_watermark(time)
        self.watermark = max(self.watermark, time)

    def clock(self, time):
        self.operator.on_clock(time)

    def flush(self):
        self.operator.on_flush()


def rows(batches):
    """Return the rows of *batches*, one tuple each, in order; how they were cut is lost."""
    return [
        row
        for batch in batches
        for row in zip(
            batch.keys or [None] * len(batch),
            batch.values,
            batch.timestamps or [None] * len(batch),
            batch.windows or [None] * len(batch),
            batch.kinds or [None] * len(batch),
            batch.offsets or [None] * len(batch),
            strict=True,
        )
    ]
