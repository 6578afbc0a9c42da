"""Files as sources: every line once, whatever its end, from any position, and clear words for what is wrong."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

import streamactors as sa
from connectors.files import JsonLines, TextLines
from connectors.files import lines as files
from streamactors.core.connectors import Undecodable


class Event(Struct):
    user: str
    n: int


async def read_all(source, partition=0, start=0, records_max=3):
    reader = await source.reader(None, partition, start)
    rows = []
    try:
        while (got := await reader.read(records_max)) is not None:
            batch, end = got
            assert 1 <= len(batch) <= records_max
            rows += zip(batch.offsets, batch.values, batch.originals(), strict=True)
        assert end == reader.end()
    finally:
        await reader.close()
    return rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)), st.booleans())
async def test_every_line_is_read_once_and_any_offset_continues_from_there(tmp_path, lines, unfinished):
    text = "\n".join(lines) + ("" if unfinished or not lines else "\n")
    (tmp_path / "f").write_text(text, encoding="utf-8")
    expected = text.split("\n")
    if expected[-1] == "":
        expected.pop()
    source = TextLines(tmp_path / "f")
    if not text:
        return
    rows = await read_all(source)
    assert [value for _, value, _ in rows] == expected
    for index, (offset, _, _) in enumerate(rows):
        assert await read_all(source, start=offset) == rows[index:]


async def test_small_blocks_read_the_same_lines(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"".join(b"%d" % n * n + b"\n" for n in range(50)))
    whole = await read_all(TextLines(tmp_path / "f"))
    monkeypatch.setattr(files, "_BLOCK_BYTES", 7)
    assert await read_all(TextLines(tmp_path / "f")) == whole


@pytest.mark.parametrize("records_max", [1, 2, 7, 1_000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
async def test_a_block_of_lines_is_given_in_parts_of_any_size(tmp_path, records_max, end):
    lines = [b"%d" % n * (n % 5) for n in range(40)] + [b"last"]
    (tmp_path / "f").write_bytes(b"\r\n".join(lines) + end)
    reader = await TextLines(tmp_path / "f").reader(None, 0, 0)
    found = []
    while got := await reader.read(records_max):
        batch, behind = got
        assert len(batch) == len(batch.offsets) <= records_max
        assert batch.bytes == behind - batch.offsets[0]
        assert batch.originals() == [value.encode() for value in batch.values]
        found += batch.values
    assert found == [line.decode() for line in lines]
    await reader.close()


async def test_carriage_returns_are_part_of_the_line_end_only(tmp_path):
    (tmp_path / "f").write_bytes(b"a\r\nb\rc\r\n")
    assert [value for _, value, _ in await read_all(TextLines(tmp_path / "f"))] == ["a", "b\rc"]


async def test_json_lines_become_values_of_a_type_and_keep_their_originals(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(b'{"user":"u","n":1,"more":2}\n{"user":"v","n":3}\n')
    rows = await read_all(JsonLines(tmp_path / "f.jsonl", Event))
    assert rows == [(0, Event("u", 1), b'{"user":"u","n":1,"more":2}'), (28, Event("v", 3), b'{"user":"v","n":3}')]


@pytest.mark.parametrize("line", [b'{"user": 7}', b"", b"{} {}", b"{", b"[" * 100_000, b'{"user":"\xff","n":1}'])
async def test_a_line_that_is_no_value_is_named_with_its_place_and_the_others_are_read(tmp_path, line):
    good = b'{"user":"u","n":1}'
    (tmp_path / "f.jsonl").write_bytes(b"\n".join([good, line, good]))
    reader = await JsonLines(tmp_path / "f.jsonl", Event).reader(None, 0, 0)
    with pytest.raises(Undecodable) as caught:
        await reader.read(3)
    batch, [(bad, record)] = caught.value.batch, caught.value.bad
    assert batch.values == [Event("u", 1)] * 2 and record.values == [line]
    assert "json/0 at offset 19" in str(bad) and "f.jsonl, byte 19" in str(bad)
    assert caught.value.end == reader.end() and await reader.read(1) is None
    await reader.close()


async def test_text_that_is_no_utf_8_is_named_with_its_place(tmp_path):
    (tmp_path / "f").write_bytes(b"good\nb\xffad\n")
    with pytest.raises(Undecodable) as caught:
        await read_all(TextLines(tmp_path / "f"))
    assert "text/0 at offset 5" in str(caught.value.bad[0][0])


async def test_a_file_that_is_cut_while_it_is_read_is_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 8)  # what was read before is not read again
    (tmp_path / "f").write_bytes(b"abc\n" * 9)
    reader = await TextLines(tmp_path / "f").reader(None, 0, 0)
    await reader.read(2)
    (tmp_path / "f").write_bytes(b"abc\n" * 2)
    with pytest.raises(sa.Damaged, match=r"f ends at byte 8; it had 36"):
        await reader.read(9)
    await reader.close()


@pytest.mark.parametrize("name", ["a.gz", "b.jsonl.zst"])
async def test_a_compressed_file_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(sa.UsageError, match="unpack it"):
        sa.Pipeline("p").json_lines(tmp_path / name)


async def test_a_line_beyond_the_limit_is_refused_instead_of_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 4)
    monkeypatch.setattr(files, "RECORD_BYTES_MAX", 16)
    (tmp_path / "f").write_bytes(b"x" * 1_000 + b"\n")
    with pytest.raises(sa.BadRecord, match="more than 16 bytes"):
        await read_all(TextLines(tmp_path / "f"))


@pytest.mark.parametrize("before", [0, 1, 3, 4, 5])
async def test_a_line_of_the_limit_is_read_wherever_it_begins(tmp_path, monkeypatch, before):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 4)
    monkeypatch.setattr(files, "RECORD_BYTES_MAX", 16)
    (tmp_path / "f").write_bytes(b"y" * before + b"\n" + b"x" * 16 + b"\nz")
    assert [value for _, value, _ in await read_all(TextLines(tmp_path / "f"))] == ["y" * before, "x" * 16, "z"]


async def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(sa.UsageError, match="there is no file"):
        await TextLines(tmp_path / "none").ends(None)


async def test_a_file_that_became_shorter_is_damage(tmp_path):
    (tmp_path / "f").write_bytes(b"abc\n")
    with pytest.raises(sa.Damaged, match="exchanged or"):
        await TextLines(tmp_path / "f").reader(None, 0, 10)


async def test_another_file_in_the_place_of_one_that_was_read_is_refused(tmp_path, data_dir):
    """Its offsets are positions in that very file: another would be read from its middle."""

    async def run(path):
        flow = sa.Pipeline("events")
        flow.json_lines(path).key_by("user").count().to_view("counts")
        async with sa.run(flow, data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
            await job.wait()

    for name in ("my data.jsonl", "other.jsonl"):
        (tmp_path / name).write_bytes(b'{"user":"u"}\n')
    await run(tmp_path / "my data.jsonl")
    await run(tmp_path / "my data.jsonl")
    with pytest.raises(sa.PipelineError, match=r"place .*my data\.jsonl became .*other\.jsonl"):
        await run(tmp_path / "other.jsonl")


async def test_two_files_are_two_sources_with_names_of_their_own(tmp_path, data_dir):
    flow = sa.Pipeline("events")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b'{"user":"%s"}\n' % name.encode())
        flow.json_lines(tmp_path / name, name=name).key_by("user").count().to_view(name)
    async with sa.run(flow, data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()
        assert [dict(job.views[name].items()) for name in ("a", "b")] == [{"a": 1}, {"b": 1}]


async def test_no_file_at_all_is_refused():
    with pytest.raises(sa.UsageError, match="at least one"):
        TextLines()


async def test_a_pipeline_reads_several_files_and_goes_on_with_what_was_appended(tmp_path, data_dir):
    for name, text in [("a", "x y\nx\n"), ("b", "y\n")]:
        (tmp_path / name).write_text(text)

    async def run():
        flow = sa.Pipeline("words")
        lines = flow.text_lines(tmp_path / "a", tmp_path / "b")
        lines.flat_map(str.split).key_by(None).count().to_view("words")
        async with sa.run(flow, data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
            await job.wait()
            return dict(job.views["words"].items())

    assert await run() == {"x": 2, "y": 2}
    with (tmp_path / "b").open("a") as file:
        file.write("x z\n")
    assert await run() == {"x": 3, "y": 2, "z": 1}
