"""What a forked child does: a command of ``streamactors``, or one of the few other things that a proof needs.

As data, one of:

    command, points, trace, batch_records, counter, variables    the command line; all but the command may be missing
    do: look, folder, region, stop                    compare views in snapshots, until there is a file *stop*
    do: hold, folder                                  keep a read transaction open until killed
    do: rows, folder                                  print how many rows each database has

*folder* is that of the job's store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import examples.quiz_counts  # noqa: F401 - what the example imports is then there
from streamactors.core.codec import decode_value, unseal
from streamactors.durable.store import Store
from streamactors.durable.views import ViewReader
from streamactors.ops import cli
from tests.crash.points import OutputCounter, Points, install

for module in (
    "append_command",
    "inspect_commands",
    "log_commands",
    "run_command",
    "version_commands",
):  # the command line imports them when it needs them
    import_module(f"streamactors.ops.{module}")


def live(what: dict[str, Any]) -> int:
    """Do it; return the exit code."""
    if "command" in what:
        return _command(what)
    store = Store.open(Path(what["folder"]), read_only=True)
    {"look": _look, "hold": _hold, "rows": _rows}[what["do"]](store, what)
    store.close()
    return 0


def _command(what: dict[str, Any]) -> int:
    arguments = what["command"]
    if "points" in what:
        data = Path(arguments[arguments.index("--data") + 1])
        install(Points(Path(what["trace"]), data, **what["points"]))
    os.environ.update(what.get("variables", {}))
    if "batch_records" in what:
        os.environ["STREAMACTORS_BATCH_RECORDS"] = str(what["batch_records"])
    if "counter" in what:
        OutputCounter(Path(what["counter"])).install()
    sys.argv = ["streamactors", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _look(store: Store, what: dict[str, Any]) -> None:
    """Compare, in one snapshot each time: two views with each other, and both with how far the region has read."""
    reader, epoch, looks, changes = ViewReader(store), 0, 0, 0
    while not Path(what["stop"]).exists():
        with reader.snapshot() as view:
            left = {str(key): count for key, count in view("left").items()}
            right = dict(view("right").items())
            both = dict(view("both").items())
            with view("left")._snapshot() as snapshot:
                stored = snapshot.get("regions", what["region"].encode())
        region = (
            {"epoch": 0, "position": {"partitions": []}} if stored is None else decode_value(unseal(stored, "region"))
        )
        read = sum(partition["offset"] for partition in region["position"]["partitions"])
        assert left == right, f"epoch {region['epoch']}: left {left}, right {right}"
        assert sum(left.values()) == read, f"epoch {region['epoch']}: {sum(left.values())} counted, {read} read"
        assert {str(n): count for (name, n), count in both.items() if name == "a"} == left, f"a of {both}, left {left}"
        assert {str(n): count for (name, n), count in both.items() if name == "b"} == left, f"b of {both}, left {left}"
        assert region["epoch"] >= epoch, f"epoch {region['epoch']} is shown after {epoch}"
        changes += region["epoch"] != epoch
        epoch, looks = region["epoch"], looks + 1
    print(json.dumps({"looks": looks, "changes": changes}))  # noqa: T201 - the answer


def _hold(store: Store, what: dict[str, Any]) -> None:
    with store.snapshot():
        print("held", flush=True)  # noqa: T201 - the answer
        time.sleep(1_000)  # until killed


def _rows(store: Store, what: dict[str, Any]) -> None:
    """Print how many rows each database has, and the epochs of pending rows."""
    with store.snapshot() as snapshot:
        rows = {name: snapshot.count(name) for name in snapshot.databases()}
        pending = {
            name: sorted({int.from_bytes(key[:8], "big") for key, _ in snapshot.scan(name)})
            for name in rows
            if name.startswith("pending:")
        }
        regions = {key.decode(): decode_value(unseal(value, "region")) for key, value in snapshot.scan("regions")}
    epochs = {region: stored["epoch"] for region, stored in regions.items()}
    print(json.dumps({"rows": rows, "pending": pending, "epochs": epochs}))  # noqa: T201 - the answer
