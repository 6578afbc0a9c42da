"""What golden files hold, in a form that JSON can compare."""

import base64
from pathlib import Path

import msgspec

import streamactors as sa
from streamactors.durable.catalogue import Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.rows import read_rows
from streamactors.durable.savepoint import RowsBlock
from streamactors.durable.savepoint_files import open_savepoint
from streamactors.durable.store import Store
from streamactors.durable.views import ViewReader


def plain(value):
    """Return *value* as JSON keeps it: bytes as base64, tuples as lists, keys that are no text as pairs."""
    if isinstance(value, bytes):
        return {"$base64": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


async def content(data: Path, folder: Path):
    """Return all that a data folder and a savepoint hold."""
    async with sa.Log(data) as log:
        topics = {name: await _topic(await log.topic(name)) for name in await log.topics()}
    return plain({"topics": topics, "state": _state(data / "jobs" / "golden" / "v1"), **_rest(data, folder)})


async def _topic(topic):
    partitions = []
    for number in range(topic.partitions):
        reader = topic.partition(number).reader(0)
        records = []
        while chunks := await reader.read():
            for chunk in chunks:
                keys = [None] * len(chunk) if chunk.keys() is None else list(chunk.keys())
                for offset, value, key in zip(range(chunk.first, chunk.end), chunk.values(), keys, strict=True):
                    records.append([offset, bytes(value).decode(), None if key is None else bytes(key).decode()])
        await reader.close()
        partitions.append(records)
    return partitions


def _state(folder: Path):
    with Store.open(folder, read_only=True) as store:
        identity = store.identity()
        views = ViewReader(store)
        restored = store.restore("submissions")
        with store.snapshot() as snapshot:
            databases = [name for name in snapshot.databases() if name.startswith(("state:", "rows", "pending:"))]
            rows = {name: [list(row) for row in snapshot.scan(name)] for name in databases}
        return {
            "identity": msgspec.structs.asdict(identity) if isinstance(identity, msgspec.Struct) else _fields(identity),
            "plan": store.plan,
            "epoch": restored.epoch,
            "position": restored.position,
            "journal": list(store.journal("submissions")),
            "views": {name: [[key, value] for key, value in views[name].items()] for name in views.names()},
            "rows": rows,
        }


def _fields(identity):
    return {name: getattr(identity, name) for name in ("job", "version", "incarnation", "format")}


def _rest(data: Path, folder: Path):
    versions = Catalogue(RealDisk(), data / "jobs" / "golden").read()
    with open_savepoint(RealDisk(), folder / "a.savepoint") as decoder:
        rows = {}
        for block in decoder.blocks():
            if isinstance(block, RowsBlock):
                rows.setdefault(block.database, []).extend(block.rows)
        views = {
            name.removeprefix("view:"): [
                [msgspec.msgpack.decode(key), value] for key, value in read_rows(name, 0, found)
            ]
            for name, found in rows.items()
            if name.startswith("view:")
        }
        savepoint = {
            "head": msgspec.to_builtins(decoder.head),
            "counts": decoder.counts,
            "digest": decoder.digest,
            "views": views,
        }
    return {"catalogue": [versions.job, versions.serving, len(versions.history)], "savepoint": savepoint}
