"""Windows as a plain script: a dict of lists, one record at a time. Nothing of the operator is used; and its driver."""

from math import gcd

from streamactors.core.batch import Batch, Kind
from streamactors.core.keys import encode_key
from streamactors.core.times import MIN_TIME
from tests.flow.fakes import rows


class Script:
    """Every window that holds a record's time has a list of its own."""

    def __init__(self, fold, *, size, slide=None, offset=0, lateness=0, early_every=None):
        self.fold, self.size, self.slide, self.offset = fold, size, slide or size, offset
        self.lateness, self.early_every = lateness, early_every
        self.pane = gcd(self.size, self.slide)
        self.watermark, self.period = MIN_TIME, None
        self.values, self.changed = {}, set()
        self.out, self.late, self.final = [], [], []

    def show(self, start, key, kind, offset=None):
        """Values in the order in which they came; where windows overlap, those of an earlier pane first."""
        end = start + self.size
        output = self.final if kind == Kind.FINAL else self.out
        held = sorted(self.values[start, key], key=lambda record: (record[0] - self.offset) // self.pane)
        output.append((key, self.fold([value for _, value in held]), end - 1, (start, end), kind, offset))

    def record(self, value, time, key, offset):
        newest = (time - self.offset) // self.slide * self.slide + self.offset
        starts = [start for start in range(newest, time - self.size, -self.slide) if start + self.size > time]
        held = [start for start in sorted(starts) if start + self.size - 1 + self.lateness > self.watermark]
        if not held:
            if starts or time + self.lateness <= self.watermark:
                self.late.append((key, value, time, None, None, offset))
            return
        for start in held:
            self.values.setdefault((start, key), []).append((time, value))
            if start + self.size - 1 > self.watermark:
                self.changed.add((start, key))
            else:
                self.show(start, key, Kind.CORRECTION, offset)  # of the record that caused it

    def watermark_to(self, time):
        if time <= self.watermark:
            return
        before, self.watermark = self.watermark, time
        for start, key in self.ordered(self.values):
            last = start + self.size - 1
            if before < last <= time:
                self.show(start, key, Kind.ON_TIME)
            if last <= time:
                self.changed.discard((start, key))
            if last + self.lateness <= time:
                self.show(start, key, Kind.FINAL)
                del self.values[start, key]

    def clock(self, time):
        if self.early_every is not None and time // self.early_every != self.period:
            self.period = time // self.early_every
            self.flush()

    def flush(self):
        if self.early_every is None:
            return
        for start, key in self.ordered(self.changed):
            self.show(start, key, Kind.EARLY)
        self.changed.clear()

    @staticmethod
    def ordered(pairs):
        return sorted(pairs, key=lambda pair: (pair[0], encode_key(pair[1])))


def run_script(script, steps):
    for offset, (step, *arguments) in enumerate(steps):
        if step == "record":
            script.record(*arguments, offset)
        else:
            getattr(script, {"watermark": "watermark_to"}.get(step, step))(*arguments)


def run_operator(driver, steps, cut_after, restore_after, first=0):
    """Hand the steps over in batches: a cut, a signal or a restore ends a batch."""
    pending = []

    def hand_over():
        if pending:
            values, times, keys, offsets = map(list, zip(*pending, strict=True))
            driver.batch(Batch(values, times, keys, offsets=offsets))
            pending.clear()

    for offset, (step, *arguments) in enumerate(steps, first):
        if step == "record":
            pending.append((*arguments, offset))
        else:
            hand_over()
            getattr(driver, {"watermark": "watermark_to"}.get(step, step))(*arguments)
        if offset in cut_after:
            hand_over()
        if offset in restore_after:
            hand_over()
            driver.restore()
    hand_over()


def assert_equal(driver, script, outputs):
    """Compare in order; repr tells 1 from 1.0 and True."""
    assert repr(rows(driver.out)) == repr(script.out if "out" in outputs else [])
    assert repr(rows(driver.final)) == repr(script.final if "final" in outputs else [])
    assert repr(rows(driver.late)) == repr(script.late)
    assert driver.operator.late_records == len(script.late)


def left_fold(values):
    total = 0
    for value in values:
        total += value
    return total
