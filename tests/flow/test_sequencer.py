"""The sequencer with outputs that are full: who is numbered meanwhile, and what passes in any case."""

import pytest

from streamactors.core.batch import Batch
from streamactors.core.signals import Barrier, ClockMark
from streamactors.engine.mailbox import Channel
from streamactors.flow.sequencer import Bound, Sequencer
from streamactors.flow.sequencing import Head, PartitionPosition, Position, Sequencing
from streamactors.testing.clock import ManualClock


class Ready:
    """A reader that always has one more record."""

    quiet_since = None
    exhausted = False

    def __init__(self, source):
        self.partition = (source, 0)
        self.next = 0

    def head(self):
        return Head(Batch([self.next], offsets=[self.next]), self.next + 1)

    def take(self, records, until=None):
        self.next += 1
        return Batch([self.next - 1], offsets=[self.next - 1]), self.next, None


def sequencer(bound=Bound.LIVE, clock_period=None):
    position = Position([PartitionPosition("a", 0), PartitionPosition("b", 0)])
    channels = {name: Channel(name, lambda: None, lambda: None) for name in "ab"}
    made = Sequencer(
        "sequencer",
        Sequencing(position, step=None, clock_longest=10**6),
        [Ready("a"), Ready("b")],
        {name: [channel] for name, channel in channels.items()},
        {name: [] for name in channels},
        clock=ManualClock(),
        event_times={},
        clock_period=clock_period,
        bound=bound,
        batch_records=10,
    )
    return made, channels


def fill(channel):
    channel.pace(16)
    channel.put(channel.progress + 1, Batch(list(range(16))), 16, 16)
    channel.advance(channel.progress + 1)


@pytest.mark.parametrize("full", ["a", "b"])
async def test_a_live_source_whose_output_is_full_does_not_hold_up_the_others(full):
    made, channels = sequencer()
    made.sequencing.position.sequence = 1
    fill(channels[full])
    for _ in range(5):
        assert await made.step()
    other = {"a": "b", "b": "a"}[full]
    assert made.sequencing.partitions[full, 0].offset == 0
    assert made.sequencing.partitions[other, 0].offset == 5


async def test_a_bounded_run_waits_so_that_its_order_is_a_function_of_the_content():
    made, channels = sequencer(Bound.UNTIL_END)
    made.sequencing.position.sequence = 1
    fill(channels["a"])
    assert not await made.step()
    assert made.sequencing.partitions["b", 0].offset == 0


async def test_when_all_outputs_are_full_only_a_barrier_passes():
    """Marks of the clock would pile up before a stage that stands."""
    made, channels = sequencer(clock_period=1_000)
    made.sequencing.position.sequence = 1
    made.sequencing.position.stirred = True
    made.on_cut = lambda *cut: None
    for channel in channels.values():
        fill(channel)
    assert not await made.step()
    made.request_barrier(Barrier(1, 1), last=False)
    assert await made.step()
    sent = {name: [channel.take()[1] for _ in range(len(channel))][1:] for name, channel in channels.items()}
    assert sent == {"a": [Barrier(1, 1)], "b": [Barrier(1, 1)]}
    assert await made.step()
    assert isinstance(channels["a"].take()[1], ClockMark)
