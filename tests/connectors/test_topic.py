"""The log as source and sink: decoding, keys, partitions, encodings."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct, json, msgpack

import streamactors as sa
from connectors import topic as topic_module
from connectors.topic import TopicSink, TopicSource
from streamactors.core.batch import Batch
from streamactors.core.connectors import Stamp, Undecodable, World
from streamactors.core.errors import BadRecord
from streamactors.core.keys import canonical_keys
from streamactors.durable.realtime import real_ports


class Event(Struct):
    user: str
    n: int


async def contents(topic):
    """Return (key, value) of each record, by partition."""
    found = []
    for number in range(topic.partitions):
        reader, rows = topic.partition(number).reader(0), []
        while chunks := await reader.read():
            rows += [pair for chunk in chunks for pair in zip(chunk.keys(), chunk.values(), strict=True)]
        await reader.close()
        found.append(rows)
    return found


async def written(data_dir, sink, *batches):
    """Write *batches* through a writer and commit them; return what the topic holds."""
    ports = real_ports()
    async with sa.Log(data_dir, ports) as log:
        world = World(data_dir, ports, log)
        writer = sink.writer(await sink.partitions(world))
        for batch in batches:
            writer.write(batch)
        target, before = await sink.target(world), {}
        for number, payload in enumerate(writer.take(), 1):
            stamp = Stamp("j", "s", "i", 1, number, 99)
            await target.commit(payload, stamp, before.get(payload.partition))
            before[payload.partition] = stamp
        found = await contents(await log.topic(sink.name))
    await ports.threads.close()
    return found


def batch(values, keys=None, offsets=None):
    offsets = range(len(values)) if offsets is None else offsets
    return Batch(values, None, None if keys is None else canonical_keys(keys), offsets=offsets)


keys = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.booleans(), st.none(), st.tuples(st.text(max_size=2)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(keys, st.one_of(st.integers(), st.text(), st.binary())), min_size=1), st.integers(1, 3))
async def test_what_is_written_is_what_is_read_in_the_order_of_each_partition(tmp_path_factory, rows, partitions):
    values = [value for _, value in rows]
    found = await written(
        tmp_path_factory.mktemp("data"), TopicSink("t", partitions), batch(values, [key for key, _ in rows])
    )
    expected = [value if type(value) is bytes else json.encode(value) for value in values]
    assert sorted(value for part in found for _, value in part) == sorted(expected)
    for part in found:
        order = iter(expected)
        assert all(value in order for _, value in part)
    homes = {}
    for number, part in enumerate(found):
        for key, _ in part:
            assert homes.setdefault(key, number) == number, "a key lives in one partition"


async def test_text_keys_stand_as_they_are_and_others_as_json(data_dir):
    found = await written(data_dir, TopicSink("t"), batch([1, 2, 3, 4], ["a\nb", 7, ("x", 1), None]))
    assert [key for key, _ in found[0]] == [b"a\nb", b"7", b'["x",1]', b"null"]


async def test_without_keys_the_offset_decides_the_partition_so_that_a_restart_changes_nothing(data_dir):
    found = await written(data_dir, TopicSink("t", 2), batch([10, 11, 12]), batch([13, 14], offsets=[3, 4]))
    assert [[value for _, value in part] for part in found] == [[b"10", b"12", b"14"], [b"11", b"13"]]


async def test_a_raw_value_with_a_newline_stays_one_record(data_dir):
    found = await written(data_dir, TopicSink("t"), batch([Raw(b'{"a":\n1}'), {"b": 2}]))
    assert [value for _, value in found[0]] == [b'{"a":\n1}', b'{"b":2}']


async def test_message_pack_is_an_encoding_too(data_dir):
    found = await written(data_dir, TopicSink("t", encoding="msgpack"), batch([{"b": 2}, "x"]))
    assert [msgpack.decode(value) for _, value in found[0]] == [{"b": 2}, "x"]


async def test_more_than_an_append_holds_becomes_several_payloads(data_dir):
    values = ["x" * 1_000] * 1_000
    found = await written(data_dir, TopicSink("t"), *[batch(values) for _ in range(5)])
    assert len(found[0]) == 5_000


def test_ever_new_keys_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("connectors.topic._PART_CACHE_MAX", 4)
    writer = TopicSink("out").writer(2)
    for number in range(100):
        writer.write(batch([number], canonical_keys([number])))
    assert len(writer._part_of) <= 5


def test_a_value_that_can_not_be_encoded_is_named():
    writer = TopicSink("t").writer(1)
    with pytest.raises(sa.BadRecord, match=r"topic t can't handle record <object.*can't be encoded"):
        writer.write(batch([1, object(), 2]))


@pytest.mark.parametrize("make", [lambda: TopicSink("t", encoding="raw"), lambda: TopicSource("t", encoding="xml")])
def test_an_unknown_encoding_is_refused(make):
    with pytest.raises(sa.UsageError, match="encoding"):
        make()


async def test_another_number_of_partitions_is_refused(data_dir):
    await written(data_dir, TopicSink("t", 2), batch([1]))
    with pytest.raises(sa.UsageError, match="2 partitions"):
        await written(data_dir, TopicSink("t", 3), batch([1]))


async def read(data_dir, source, *appends):
    ports = real_ports()
    async with sa.Log(data_dir, ports) as log:
        topic = await log.create_topic(source.name)
        for values in appends:
            await topic.append_many(values)
        reader = await source.reader(World(data_dir, ports, log), 0, 0)
        rows = []
        try:
            while (got := await reader.read(100)) is not None:
                rows += zip(got[0].offsets, got[0].values, got[0].originals(), strict=True)
        finally:
            await reader.close()
    await ports.threads.close()
    return rows


async def test_small_frames_are_decoded_together_and_keep_their_originals(data_dir):
    one, two = b'{"user":"u","n":1,"more":true}', b'{"n":2,"user":"v"}'
    rows = await read(data_dir, TopicSource("t", Event), [one], [two])
    assert rows == [(0, Event("u", 1), one), (1, Event("v", 2), two)]


@pytest.mark.parametrize("values", [[b""], [b"1 2"], [b"{"], [b"1", b"", b"2 3"]])
async def test_what_is_no_single_json_value_is_refused_with_its_place(data_dir, values):
    with pytest.raises(Undecodable) as found:
        await read(data_dir, TopicSource("t"), values)
    assert all("t/0 at offset" in str(bad) for bad, _ in found.value.bad)


async def test_a_value_over_several_lines_is_one_value(data_dir):
    assert [v for _, v, _ in await read(data_dir, TopicSource("t"), [b"[1,\n2]", b"3"])] == [[1, 2], 3]


async def test_raw_values_come_as_they_are(data_dir):
    assert [v for _, v, _ in await read(data_dir, TopicSource("t", encoding="raw"), [b"\xff\n", b""])] == [
        b"\xff\n",
        b"",
    ]


def test_what_no_frame_holds_is_cut_and_what_no_record_holds_is_named(monkeypatch):
    """Written all the same, the log could not read it back: a length beyond the limit is taken for damage."""
    monkeypatch.setattr(topic_module, "RECORD_BYTES_MAX", 1_000)
    sink = TopicSink("t")
    writer = sink.writer(1)
    values = [bytes([65 + n]) * 300 for n in range(20)]
    writer.write(Batch(values))
    columns = writer._groups[0].columns
    assert [len(column.values()) for column in columns] == [2, 3] * 4
    assert [value for column in columns for value in column.values()] == values
    with pytest.raises(BadRecord, match=r"topic t can't handle record .* it has 2,000 bytes, a record of the log"):
        writer.write(Batch([b"small", b"x" * 2_000]))


def test_an_epoch_is_cut_into_payloads_of_a_good_size_in_order(monkeypatch):
    monkeypatch.setattr(topic_module, "PENDING_CHUNK_BYTES", 100)
    writer = TopicSink("t").writer(2)
    values = [f"{number:030d}".encode() for number in range(40)]
    held = [writer.write(Batch(values[at : at + 2], offsets=[at, at + 1])) for at in range(0, 40, 2)]
    assert held == [31 * count for count in range(2, 42, 2)]
    payloads = writer.take()
    found = {0: [], 1: []}
    for payload in payloads:
        records = topic_module._decode_payload(payload.data).records()
        assert records.size <= 100
        found[payload.partition] += records.column.values()
    assert found == {0: values[::2], 1: values[1::2]}
    assert writer.take() == []


async def test_a_job_whose_log_ends_before_its_checkpoint_is_refused_and_skips_nothing(data_dir):
    """A bounded run as well: it would call this the end, and pass over what is appended up to where it stood."""
    flow = sa.Pipeline("counts")
    flow.topic("t", Event).key_by("user").count().to_view("counts")
    bounded = sa.Settings(bound=sa.Bound.UNTIL_END)
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("t", 1)
        await topic.append_many([b'{"user":"u","n":1}'] * 3)
    async with sa.run(flow, data_dir, settings=bounded) as job:
        await job.wait()
    shutil.rmtree(data_dir / "log")
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("t", 1)
        await topic.append_many([b'{"user":"u","n":1}'])
    with pytest.raises(sa.JobFailed, match="durable up to offset 1, and is to be read from 3"):
        async with sa.run(flow, data_dir, settings=bounded) as job:
            await job.wait()
