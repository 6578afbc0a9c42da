"""A process of its own that writes a topic; its orders come by lines on standard input, its answers go out by lines.

append TEXT    append it; answers "<offset> <monotonic time when it was durable>"
pause          the next sync waits; answers "paused" when it has begun
go             the paused sync may go on
"""

import asyncio
import sys
import threading
import time
from pathlib import Path

from streamactors.durable.files import RealFile
from streamactors.durable.frames import Records
from streamactors.durable.log import Log


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(data_dir):
    may_sync = threading.Event()
    may_sync.set()
    sync = RealFile.sync

    def paused_sync(file):
        if not may_sync.is_set():
            say("paused")
            may_sync.wait()
        sync(file)

    RealFile.sync = paused_sync
    appends = set()
    async with Log(Path(data_dir)) as log:
        partition = (await log.create_topic("t")).partition(0)
        await partition.append(Records.of([b"first"]))
        say("ready")

        async def append(text):
            offset = await partition.append(Records.of([text.encode()]))
            say(offset, time.monotonic())

        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            if line[0] == "append":
                appends.add(asyncio.create_task(append(line[1])))
            elif line[0] == "pause":
                may_sync.clear()
            else:
                may_sync.set()


asyncio.run(main(sys.argv[1]))
