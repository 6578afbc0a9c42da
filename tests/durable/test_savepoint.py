"""Savepoints as bytes: what is read is what was written, or an error with a place."""

import random

import pytest

from streamactors.core.errors import Damaged, UsageError
from streamactors.durable import savepoint
from streamactors.durable.savepoint import (
    JournalBlock,
    RegionHead,
    RowsBlock,
    SavepointDecoder,
    SavepointEncoder,
    SavepointHead,
)

HEAD = SavepointHead(
    job="quiz",
    version="v1",
    incarnation="ab" * 16,
    created_ms=1_700_000_000_000,
    release="0.1.0",
    guarantee=None,
    plan={"events": {"operators": {}}},
    regions={"events": RegionHead(7, 2, 1_600_000_000_000, {"partitions": []})},
)
ROWS = [(bytes([n]), b"value" * n) for n in range(20)]
JOURNAL = [["read", "events", 0, 0, 17], ["idle", "events", 0]]


def encoded(head=HEAD):
    pieces = []
    encoder = SavepointEncoder(pieces.append)
    encoder.head(head)
    encoder.rows("state:count:running", ROWS[:12])
    encoder.rows("state:count:running", ROWS[12:])
    encoder.rows("view:counts", ROWS[:1])
    encoder.journal("events", 7, JOURNAL)
    encoder.end()
    return b"".join(pieces)


def decoded(data):
    decoder = SavepointDecoder(lambda at, size: data[at : at + size], len(data), "a.savepoint")
    return decoder.head, list(decoder.blocks()), decoder


def test_what_was_written_is_read():
    head, blocks, decoder = decoded(encoded())

    assert head == HEAD
    rows = [row for block in blocks if isinstance(block, RowsBlock) and block.database[0] == "s" for row in block.rows]
    assert rows == ROWS
    assert blocks[-1] == JournalBlock("events", 7, JOURNAL)
    assert {name: count for name, (count, _) in decoder.counts.items()} == {
        "state:count:running": 20,
        "view:counts": 1,
        "journal:events": 2,
    }
    assert len(decoder.digest) == 64


def test_equal_content_is_equal_bytes():
    assert encoded() == encoded()


def test_each_byte_that_is_changed_is_named_with_file_and_position():
    data = encoded()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises((Damaged, UsageError), match=r"a\.savepoint") as raised:
            decoded(bytes(damaged))
        assert isinstance(raised.value, Damaged) or at < 12, f"at {at}: {raised.value}"


def test_each_length_that_a_cut_file_may_have_is_damage():
    data = encoded()
    for size in range(len(data)):
        with pytest.raises(Damaged, match="was cut at"):
            decoded(data[:size])


def test_what_goes_on_behind_its_end_is_damage():
    with pytest.raises(Damaged, match="goes on behind its end, for 3 bytes"):
        decoded(encoded() + b"abc")


def test_blocks_that_changed_places_are_damage():
    """Each checks out by itself, but not where it stands."""
    pieces = []
    encoder = SavepointEncoder(pieces.append)
    encoder.head(HEAD)
    encoder.rows("view:a", ROWS[:1])
    encoder.rows("view:b", ROWS[:1])
    encoder.end()
    pieces[2], pieces[3] = pieces[3], pieces[2]
    with pytest.raises(Damaged, match="does not check out"):
        decoded(b"".join(pieces))


def test_random_damage_of_several_bytes_is_found():
    data = encoded()
    for seed in range(300):
        rng = random.Random(seed)
        damaged = bytearray(data)
        first = rng.randrange(12, len(data))
        damaged[first : first + rng.randint(1, 40)] = rng.randbytes(rng.randint(0, 40))
        if bytes(damaged) != data:
            with pytest.raises(Damaged, match="position"):
                decoded(bytes(damaged))


def test_a_newer_format_is_refused_with_the_rule(monkeypatch):
    monkeypatch.setattr(savepoint, "FORMAT", 2)
    newer = encoded()
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"has format version 2, .*never what a later one has"):
        decoded(newer)


def test_another_file_is_no_savepoint():
    with pytest.raises(UsageError, match="is no savepoint"):
        decoded(b"PK\x03\x04" + bytes(100))
