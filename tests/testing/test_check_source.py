"""The check itself: each way to break the contract is found, in the mode that names it."""

import asyncio

import pytest

from connectors.memory import Items
from streamactors.core.batch import Batch
from streamactors.core.connectors import EndOfInput, Replay, World
from streamactors.durable.realtime import real_ports
from streamactors.testing.check_source import SourceFault, check_source
from streamactors.testing.source import Deliveries


@pytest.fixture
async def world(data_dir):
    ports = real_ports()
    yield World(data_dir, ports, None, bounded=True)
    await ports.threads.close()


def broken(**changes):
    """Return what makes a source of five numbers whose readers differ by *changes* from right ones."""

    class Numbers(Items):
        async def reader(self, world, partition, start):
            reader = await super().reader(world, partition, start)
            for name, change in changes.items():
                setattr(reader, name, change(reader, getattr(reader, name)))
            return reader

    return lambda: Numbers([10, 11, 12, 13, 14])


def reads(change):
    """Return a change of ``read`` that changes what it gives."""

    def wrapped(reader, read):
        async def changed(records_max):
            got = await read(records_max)
            return None if got is None else change(*got)

        return changed

    return wrapped


def shifted(batch, end):
    return batch.replace(offsets=[offset - 1 for offset in batch.offsets]), end


def starts_at_the_begin(reader, read):
    reader._next = 0
    return read


def loses_by_waiting(reader, wait):
    async def changed():
        reader._next += 1
        await wait()

    return changed


def hangs(reader, _):
    async def changed(*_):
        await asyncio.Event().wait()

    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"read": reads(lambda batch, end: (batch, end - len(batch)))}, "all at once: .*does not move on"),
        ({"read": reads(lambda batch, end: (batch, end + 1))}, "all at once: end.. says 5, and read.. came to 6"),
        ({"read": reads(shifted)}, r"all at once: read\(\) gave offsets \[-1\]"),
        ({"read": reads(lambda batch, end: (batch.replace(origin=None), end))}, "has no origin"),
        ({"read": lambda reader, read: lambda _: read(2)}, r"one at a time: read\(1\) gave 2 records"),
        ({"read": starts_at_the_begin}, "reopened everywhere: read.. gave offsets"),
        ({"wait": loses_by_waiting}, "waiting, cancelled: partition 0 after waits that were cancelled"),
        ({"close": hangs}, "all at once: close took more than"),
        ({"read": hangs}, "all at once: read took more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_reader_that_breaks_the_contract_is_named_with_the_mode(world, changes, words):
    with pytest.raises(SourceFault, match=words):
        await check_source(broken(**changes), world, patience_seconds=0.2)


async def test_a_right_source_passes_and_the_report_says_what_it_does_not_cover(world):
    checked = await check_source(broken(), world, expected=[[10, 11, 12, 13, 14]])
    assert checked.records == [5]
    assert "reopened everywhere" in str(checked) and "not covered: what a crash" in str(checked)


async def test_what_is_expected_is_compared(world):
    with pytest.raises(SourceFault, match="against what is expected"):
        await check_source(broken(), world, expected=[[10, 11]])


async def test_an_end_that_never_comes_is_a_hang_with_words(world):
    class Endless(Items):
        async def ends(self, world):
            return [None]

    with pytest.raises(SourceFault, match="did not say EndOfInput"):
        await check_source(lambda: Endless([1]), world, patience_seconds=0.2)


async def test_an_acknowledgement_that_is_forgotten_is_found(world):
    class Forgetful(Deliveries):
        async def reader(self, world, partition, start):
            reader = await super().reader(world, partition, start)

            async def acknowledge(end):
                """Forget it."""

            reader.acknowledge = acknowledge
            return reader

    with pytest.raises(SourceFault, match="acknowledged: partition 0: what comes again after 1 of 3"):
        await check_source(lambda: Forgetful([1, 2, 3]), world)


async def test_a_source_that_promises_to_redeliver_must_take_acknowledgements(world):
    class Mute(Items):
        replay = Replay.UNACKNOWLEDGED

        async def ends(self, world):
            return [None]

        async def reader(self, world, partition, start):
            return _Mute(self.values)

    class _Mute:
        def __init__(self, values):
            self.values, self.given = values, False

        async def read(self, records_max):
            got, self.values = self.values[:records_max], self.values[records_max:]
            if not got:
                return None
            first = 3 - len(self.values) - len(got)
            return Batch(got, offsets=range(first, first + len(got)), origin=_Origin()), first + len(got)

        def end(self):
            return 3

        async def wait(self):
            raise EndOfInput

        async def close(self):
            pass

    with pytest.raises(SourceFault, match=r"has no acknowledge\(\)"):
        await check_source(lambda: Mute([1, 2, 3]), world)


class _Origin:
    source, partition = "mute", 0

    def originals(self, offsets):
        return list(offsets)
