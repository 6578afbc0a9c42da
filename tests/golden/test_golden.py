"""What each release has written is read by this one, and means the same."""

import shutil
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from streamactors.core.errors import StorageError, UsageError
from streamactors.durable import frames, savepoint, segment
from streamactors.durable.catalogue import Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records, encode_frame
from streamactors.durable.savepoint import SavepointDecoder
from streamactors.durable.segment import SegmentHead, decode_head, encode_head
from streamactors.durable.store import Store
from tests.golden.pipeline import pipeline, values
from tests.golden.reading import content

RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "content.json").exists())
RULE = "never what a later one has: use the release that wrote it, or a later one"


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request, tmp_path):
    """A copy of a release's files: reading makes locks and cells."""
    shutil.copytree(request.param, tmp_path / "release")
    return tmp_path / "release"


async def test_the_files_of_a_release_hold_what_it_said(release):
    expected = msgspec.json.decode((release / "content.json").read_bytes())
    found = msgspec.json.decode(msgspec.json.encode(await content(release / "data", release)))
    assert found.keys() == expected.keys()
    for part in expected:
        assert found[part] == expected[part], part


async def test_a_job_goes_on_from_them_as_one_that_never_stopped(release, tmp_path):
    """From its state, from its savepoint, and anew; what depends on no order is compared with the input itself."""
    plain = tmp_path / "plain"
    shutil.copytree(release / "data" / "log", plain / "log")
    savepoint_path = release / "a.savepoint"
    own = await finish(release / "data")
    from_savepoint = await finish(plain, from_savepoint=savepoint_path, sinks="continue")
    assert own == from_savepoint
    totals: dict[str, int] = {}
    for event in map(msgspec.json.decode, values(0, 90)):
        totals[event["quiz"]] = totals.get(event["quiz"], 0) + 1
    assert own["totals"] == totals


async def finish(data_dir, **more):
    async with sa.Log(data_dir) as log:
        topic = await log.topic("submissions")
        for number in range(2):
            await topic.partition(number).append(Records.of(values(60, 90)[number::2]))
    settings = sa.Settings(bound=sa.Bound.FINISH, sync=False, **more)
    async with sa.run(pipeline(parts=3), data_dir, settings=settings) as job:
        await job.wait()
        return {name: dict(job.views[name].items()) for name in job.views.names()}


# Formats that are newer than this release. ----------------------------------------------------------------------------


def test_a_newer_frame_is_refused_with_the_rule(monkeypatch):
    monkeypatch.setattr(frames, "FORMAT_VERSION", 9)
    data = encode_frame(Records.of([b"{}"]), first=0, time=0, extras=b"", segment=b"\0" * 16, position=32)
    monkeypatch.undo()
    with pytest.raises(StorageError, match=f"has format version 9, .*{RULE}"):
        frames.decode_header(bytes(data), 0, b"\0" * 16, 32)


def test_a_newer_segment_is_refused_with_the_rule(monkeypatch):
    monkeypatch.setattr(segment, "_HEAD_VERSION", 9)
    head = encode_head(SegmentHead(b"\0" * 16, 0, 0))
    monkeypatch.undo()
    with pytest.raises(StorageError, match=f"has format version 9, .*{RULE}"):
        decode_head(head, "a.segment")


async def test_a_newer_topic_is_refused_with_the_rule(tmp_path):
    async with sa.Log(tmp_path) as log:
        await log.create_topic("events")
    (tmp_path / "log" / "events" / "topic.json").write_text('{"partitions": 1, "version": 9}')
    async with sa.Log(tmp_path) as log:
        with pytest.raises(StorageError, match=f"has format version 9, .*{RULE}"):
            await log.topic("events")


def test_a_newer_store_is_refused_with_the_rule(tmp_path, monkeypatch):
    with Store.open(tmp_path, sync=False) as store:
        store.identity("quiz", new_id="0" * 32)
        store._save_meta("identity", {"job": "quiz", "version": "v1", "incarnation": "0" * 32, "format": 9})
        with pytest.raises(UsageError, match=f"has format version 9, .*{RULE}"):
            store.identity()


def test_a_newer_catalogue_is_refused_with_the_rule(tmp_path):
    (tmp_path / "versions.json").write_text(
        '{"job": "quiz", "serving": "v1", "versions": [], "history": [], "format": 9}'
    )
    with pytest.raises(UsageError, match=f"has format version 9, .*{RULE}"):
        Catalogue(RealDisk(), tmp_path).read()


def test_a_newer_savepoint_is_refused_with_the_rule(monkeypatch):
    data = bytearray((RELEASES[0] / "a.savepoint").read_bytes())
    checked = savepoint._FILE.pack(savepoint.MAGIC, 9, 0)[:-4]
    data[: savepoint._FILE.size] = checked + savepoint.crc32(checked).to_bytes(4, "big")
    with pytest.raises(UsageError, match=f"has format version 9, .*{RULE}"):
        SavepointDecoder(lambda at, size: bytes(data[at : at + size]), len(data), "a.savepoint")
