"""A local Flink cluster, as ``bin/start-cluster.sh`` makes it: one job manager, one task manager.

They run in the foreground, so they are children of the program: they share
its cores, their memory is counted, and they end with it.
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pyflink

HOME = Path(pyflink.__file__).parent
STARTS_WITHIN_S = 90


@contextmanager
def cluster(task):
    """Lend the REST port of a cluster with one slot for each core."""
    conf = task.folder / "conf"
    conf.mkdir()
    rest, rpc = _free_port(), _free_port()
    settings = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": "localhost",
        "jobmanager.memory.process.size": "1024m",
        "taskmanager.bind-host": "localhost",
        "taskmanager.host": "localhost",
        "taskmanager.memory.process.size": "2048m",
        "taskmanager.numberOfTaskSlots": task.cores,
        "parallelism.default": task.cores,
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": rest,
        "io.tmp.dirs": task.folder / "tmp",
    }
    (task.folder / "tmp").mkdir()
    (conf / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    for name in ("log4j-console.properties", "log4j.properties"):
        (conf / name).write_text((HOME / "conf" / name).read_text())
    environment = {**os.environ, "FLINK_HOME": str(HOME), "FLINK_CONF_DIR": str(conf)}
    environment |= {"FLINK_LOG_DIR": str(task.folder)}
    with (task.folder / "cluster.log").open("w") as log:
        parts = [
            subprocess.Popen(
                ["bash", str(HOME / "bin" / script), "start-foreground"],  # noqa: S607 - Flink asks for bash by its name
                env=environment,
                stdout=log,
                stderr=log,
            )
            for script in ("jobmanager.sh", "taskmanager.sh")
        ]
        try:
            _wait_for_slots(rest, task.cores)
            yield rest
        finally:
            for part in parts:
                part.terminate()
            for part in parts:
                part.wait()


def _free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _wait_for_slots(port, slots):
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/overview", timeout=5) as answer:
                if json.load(answer)["slots-available"] >= slots:
                    return
        except OSError:
            pass  # not there yet
        time.sleep(0.1)
    raise SystemExit(f"the cluster offers no {slots} slots after {STARTS_WITHIN_S} s: see cluster.log")
