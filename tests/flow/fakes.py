"""State in dicts with the interface of durable/state.py: its snapshots go through bytes, as the real one's do."""

from __future__ import annotations

from streamactors.core.codec import decode_value, encode_value
from streamactors.core.keys import decode_key, encode_key
from streamactors.core.times import MIN_TIME
from streamactors.flow.operator import OperatorContext


class DictState:
    """KeyedState without a store behind it."""

    def __init__(self):
        self.spaces = {}

    def get_many(self, ns, keys):
        return list(map(self.spaces.get(ns, {}).get, keys))

    def put_many(self, ns, entries):
        assert None not in entries.values()
        self.spaces.setdefault(ns, {}).update(entries)

    def get(self, ns, key):
        return self.spaces.get(ns, {}).get(key)

    def put(self, ns, key, value):
        self.put_many(ns, {key: value})

    def delete(self, ns, key):
        self.spaces.get(ns, {}).pop(key, None)

    def items(self, ns):
        return sorted(self.spaces.get(ns, {}).items(), key=lambda item: encode_key(item[0]))

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
    """What one operator keeps, and the context that opens it."""

    def __init__(self, snapshot=None):
        self.states, self.rows = {}, {}
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
        return OperatorContext("job/op[0]", self.state, self.row, watermark)

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


class Driver:
    """Run one operator by a list of steps; ``restore`` replaces it by a new one from its own snapshot."""

    def __init__(self, make):
        self.make = make
        self.out, self.late = [], []
        self.watermark = MIN_TIME
        self._open(Part())

    def _open(self, part):
        self.part, self.operator = part, self.make()
        self.operator.emit, self.operator.emit_late = self.out.append, self.late.append
        self.operator.open(part.context(self.watermark))

    def restore(self):
        self._open(Part(self.part.snapshot()))

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
