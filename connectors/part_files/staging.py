"""How a part file becomes visible exactly once, though another program may move it away at any moment.

A finished part can't tell that it was committed: it may be gone. So what stays is hidden: a *stamp file* for each (job,
sink, partition), and the part itself under a *staged* name until it is shown. All names are in one folder; those that
begin with a dot are ours, and who moves parts leaves them alone.

    commit N   1. the part is written as   .NAME.staged          and synced
               2. the stamp of N is written as .….stamp.new      and synced; it holds NAME
               3. the folder is synced: both names are durable
               4. .….stamp.new replaces .….stamp, and the folder is synced: from here on N is committed
               5. .NAME.staged is renamed to NAME, and the folder is synced: N is visible

Step 5 is taken exactly once because it uses up its own precondition: if the stamp says N, then either the staged file
is there and N is not yet visible, or it is not there and N *was* visible, whatever became of it. The final name is
never looked at.

    the process dies   stamp     .NAME.staged        found by the next start, and what it does
    in 1, 2, 3         N - 1     maybe, maybe half    no stamp names it: it is removed; N is pending and comes again
    in 4, replaced     N         there                the folder is synced, then step 5
    behind 5           N         gone                 N is done

    the power goes     A sync is missing, so the names may be as before any of the steps since the last one; the
    table is the same. (3 is there because a stamp without its staged file would mean "done"; the sync in 4 because a
    part that is shown while its stamp is lost would be shown again.) One thing differs: if the rename of 5 is lost and
    the part was *copied* to elsewhere in that instant, it appears again, under the same name with the same bytes. No
    protocol of names can help it: a name is seen before it is durable. Who keeps the names overwrites it by itself.

A name is used once: it has the epoch and the part, and before them a number that rises with each new incarnation of the
job, which counts its epochs from 1 again. So a rename never replaces a part.

One process at a time writes as (job, sink): a lock in the folder, or two with the same stamp file could both compare
before one of them sets it.

``show`` is for output without stamp (at-least-once, at-most-once): staged, synced, renamed, synced. What a dead process
left staged is removed by the next one of its data folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import msgspec

from streamactors.core.codec import seal, unseal
from streamactors.core.connectors import Stamp
from streamactors.core.errors import SinkConflict
from streamactors.core.ports import Disk, Lock

STAGED, NEW = ".staged", ".new"
_NAME_CHARACTERS_MAX = 150  # of job and sink in a file's name, of the 255 bytes that file systems allow


class Shown(msgspec.Struct, array_like=True):
    """What a stamp file holds."""

    stamp: Stamp
    part: str
    """The name of the part that was committed with it."""

    generation: int
    """Which incarnation that was: 1, 2, ...."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Shown).decode


class Staging:
    """The parts of one (job, sink) in a folder. Synchronous: used in one lane."""

    def __init__(self, disk: Disk, folder: Path, job: str, sink: str, extension: str) -> None:
        self._disk = disk
        self._folder = folder
        self._base = base_name(job, sink)
        self._extension = extension
        self._part = re.compile(
            rf"{re.escape(self._base)}-p(\d{{4}})-(\d{{4,}})-\d{{10,}}-\d{{5,}}{re.escape(extension)}"
        )
        self._lock: Lock | None = None
        self._recovered = False

    def last_stamp(self, partition: int) -> Stamp | None:
        """Complete what was committed, remove what was not, and return the stamp of *partition*; all of it durable."""
        self._recovered = False
        self._recover()
        shown = self._shown(partition)
        return None if shown is None else shown.stamp

    def commit(self, partition: int, data: bytes, stamp: Stamp, expect: Stamp | None) -> None:
        """Take the steps of the module's header."""
        if not self._recovered:
            self._recover()
        shown = self._shown(partition)
        if shown is not None and shown.stamp == stamp:
            return
        if (None if shown is None else shown.stamp) != expect:
            raise SinkConflict(
                f"{self._folder}, partition {partition} shows {None if shown is None else shown.stamp}, but {expect} "
                f"was left there before {stamp}. Another writer was there, or hidden files were removed. Put them "
                "back, or start the job anew."
            )
        generation = self._generation(partition, shown, stamp)
        part = f"{self._base}-p{partition:04}-{generation:04}-{stamp.epoch:010}-{stamp.part:05}{self._extension}"
        self._recovered = False  # until all steps are taken
        disk, folder = self._disk, self._folder
        write_file(disk, folder / f".{part}{STAGED}", data)  # 1
        stamp_file = self._stamp_file(partition)
        write_file(disk, folder / (stamp_file + NEW), seal(_encode(Shown(stamp, part, generation))))  # 2
        disk.sync_folder(folder)  # 3
        disk.rename(folder / (stamp_file + NEW), folder / stamp_file)  # 4
        disk.sync_folder(folder)
        disk.rename(folder / f".{part}{STAGED}", folder / part)  # 5
        disk.sync_folder(folder)
        self._recovered = True

    def close(self) -> None:
        """Give up the lock."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _recover(self) -> None:
        disk, folder = self._disk, self._folder
        if self._lock is None:
            self._lock = disk.lock(folder / f".{self._base}.lock")
        names = disk.names(folder)
        stamps = re.compile(rf"\.{re.escape(self._base)}-p(\d{{4}})\.stamp({re.escape(NEW)})?")
        partitions = [int(match[1]) for name in names if (match := stamps.fullmatch(name)) and not match[2]]
        committed = {shown.part for number in partitions if (shown := self._shown(number)) is not None}
        staged = [name[1 : -len(STAGED)] for name in names if name.startswith(".") and name.endswith(STAGED)]
        ours = [part for part in staged if self._part.fullmatch(part)]
        disk.sync_folder(folder)  # a stamp is durable, and not only there, before its part is shown or called done
        for part in ours:
            if part in committed:
                disk.rename(folder / f".{part}{STAGED}", folder / part)
            else:
                disk.remove(folder / f".{part}{STAGED}")
        for name in names:
            if (match := stamps.fullmatch(name)) and match[2]:
                disk.remove(folder / name)
        disk.sync_folder(folder)
        self._recovered = True

    def _shown(self, partition: int) -> Shown | None:
        path = self._folder / self._stamp_file(partition)
        data = read_file(self._disk, path)
        return None if data is None else _decode(unseal(data, str(path)))

    def _generation(self, partition: int, shown: Shown | None, stamp: Stamp) -> int:
        """Return the number of the stamp's incarnation: that of the last one, or one that no part here has."""
        if shown is not None and shown.stamp.incarnation == stamp.incarnation:
            return shown.generation
        matches = map(self._part.fullmatch, self._disk.names(self._folder))
        used = [int(match[2]) for match in matches if match is not None and int(match[1]) == partition]
        return 1 + max([0 if shown is None else shown.generation, *used])

    def _stamp_file(self, partition: int) -> str:
        return f".{self._base}-p{partition:04}.stamp"


class Showing:
    """Parts without stamps. Synchronous: used in one lane."""

    def __init__(self, disk: Disk, folder: Path, sink: str, extension: str, *, owner: Path, life: str) -> None:
        self._disk, self._folder, self._extension = disk, folder, extension
        self._sink = sink
        self._owner = f"{crc32(str(owner).encode()):08x}"
        self._life = life[:8]
        self._count = self._last_ms = 0

    def show(self, partition: int, data: bytes, now_ms: int) -> None:
        """Make a part visible. Their names sort in the order of the calls."""
        disk, folder = self._disk, self._folder
        if not self._count:
            self._remove_left_over()
        self._count += 1
        self._last_ms = max(self._last_ms, now_ms)
        order = f"{self._last_ms:013}-{self._count:08}-{self._owner}{self._life}"
        part = f"{base_name('', self._sink)}-p{partition:04}-{order}{self._extension}"
        write_file(disk, folder / f".{part}{STAGED}", data)
        disk.rename(folder / f".{part}{STAGED}", folder / part)
        disk.sync_folder(folder)

    def _remove_left_over(self) -> None:
        base = re.escape(base_name("", self._sink))
        ours = re.compile(rf"\.{base}-p\d{{4}}-\d+-\d+-{self._owner}[0-9a-f]+{re.escape(self._extension + STAGED)}")
        for name in filter(ours.fullmatch, self._disk.names(self._folder)):
            self._disk.remove(self._folder / name)


def base_name(job: str, sink: str) -> str:
    """Return what all names of (*job*, *sink*) begin with. ``@`` is in neither, so no two share one."""
    base = f"{job}@{sink}"
    if len(base) > _NAME_CHARACTERS_MAX:
        base = f"{base[:_NAME_CHARACTERS_MAX]}@{crc32(base.encode()):08x}"
    return base


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Make a file and sync its content; its name is durable after a sync of the folder."""
    file = disk.open(path, create=True)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Give *path* new content, durably and at once; readers see the old one or the new one."""
    new = path.with_name(path.name + NEW)
    if disk.exists(new):
        disk.remove(new)
    write_file(disk, new, data)
    disk.rename(new, path)
    disk.sync_folder(path.parent)


def read_file(disk: Disk, path: Path) -> bytes | None:
    """Return a file's content; None when it is not there."""
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        return file.read(0, file.size())
    finally:
        file.close()
