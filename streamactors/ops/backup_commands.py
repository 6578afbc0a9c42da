"""``streamactors backup`` and ``streamactors restore``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path, PurePosixPath
from secrets import token_hex

import click

from streamactors.core.errors import Damaged, UsageError
from streamactors.core.sizes import shown_size
from streamactors.durable.store import Store

from .backup import Manifest, back_up, encode_manifest, read_manifest
from .cli import data_option
from .failures import OK
from .jobs import existing, maintenance
from .output import say, write_json_lines
from .staging import (
    MANIFEST,
    PARTS,
    Staging,
    completed_content,
    finish,
    pieces_of,
    refuse_content,
)

_FRAME_SECONDS = 0.1

progress_option = click.option(
    "--progress/--no-progress", default=None, help="Show how far it is. By default in a terminal."
)


class _Progress:
    """One line on standard error, drawn over."""

    def __init__(self, verb: str, total: int | None, *, wanted: bool | None) -> None:
        self._verb, self._total = verb, total
        self._shown = sys.stderr.isatty() if wanted is None else wanted
        self._bytes, self._next, self._started = 0, 0.0, time.monotonic()

    def told(self, path: str, size: int) -> None:
        """Note *size* more bytes, of the file at *path*."""
        self._bytes += size
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _FRAME_SECONDS
            of = "" if self._total is None else f" of {shown_size(self._total)}"
            rate = shown_size(round(self._bytes / max(now - self._started, 0.001)))
            sys.stderr.write(f"\r\x1b[K{self._verb} {shown_size(self._bytes)}{of}, {rate}/s: {path}")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# Backup. --------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("dest", type=click.Path(path_type=Path))
@progress_option
@click.option("--json", "as_json", is_flag=True, help="The answer as an object.")
def backup(data_dir: Path, dest: Path, *, progress: bool | None, as_json: bool) -> int:
    """
    Copy the data folder to DEST, a new folder, while its jobs run.

    DEST is a data folder: `streamactors run` starts from it, or from what `streamactors restore` makes of it. It is
    complete when it has a backup.json.
    """
    if not any((existing(data_dir) / part).is_dir() for part in PARTS):
        raise UsageError(f"{data_dir} is no data folder: there is neither a log nor a job in it. Check --data.")
    if dest.resolve().is_relative_to(data_dir.resolve()):
        raise UsageError(f"{dest} lies inside {data_dir}: a disk that fails takes both. Give another folder.")
    shown = _Progress("copied", None, wanted=progress)
    with maintenance(data_dir):
        refuse_content(dest, "backup")
        staging = Staging.begin(dest, shown.told)
        try:
            manifest = asyncio.run(back_up(data_dir, staging, lambda: token_hex(16)))
            staging.write(MANIFEST, [encode_manifest(manifest)])
            staging.complete(MANIFEST)
        except BaseException:
            staging.give_up()
            raise
        finally:
            shown.end()
    _tell(manifest, f"backed up {data_dir} to {dest}", as_json=as_json)
    return OK


def _tell(manifest: Manifest, what: str, *, as_json: bool) -> None:
    if as_json:
        write_json_lines(
            [{"files": len(manifest.files), "bytes": manifest.bytes, "jobs": manifest.jobs, "topics": manifest.topics}]
        )
        return
    jobs, topics = len(manifest.jobs), len(manifest.topics)
    say(
        f"{what}: {jobs} job{'' if jobs == 1 else 's'}, {topics} topic{'' if topics == 1 else 's'}, "
        f"{len(manifest.files):,} files, {shown_size(manifest.bytes)}"
    )


# Restore. -------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("src", type=click.Path(path_type=Path))
@data_option
@progress_option
@click.option("--json", "as_json", is_flag=True, help="The answer as an object.")
def restore(src: Path, data_dir: Path, *, progress: bool | None, as_json: bool) -> int:
    """
    Make a new data folder of the backup SRC, each file checked by its sum.

    A restore that was interrupted is completed by giving the same command again. Jobs begin a new incarnation.
    """
    manifest, raw = read_manifest(src)
    content = sha256(raw).hexdigest()
    refuse_content(data_dir, "data")
    data_dir.mkdir(parents=True, exist_ok=True)
    shown = _Progress("restored", manifest.bytes, wanted=progress)
    with maintenance(data_dir):
        refuse_content(data_dir, "data")
        whole = completed_content(data_dir)
        if whole is None:
            _copy(src, manifest, data_dir, shown, content)
        elif whole == content:
            finish(data_dir)
        else:
            raise UsageError(f"{data_dir} holds an unfinished restore of another backup. Complete that, or remove it.")
    _tell(manifest, f"restored {src} to {data_dir}", as_json=as_json)
    return OK


def _copy(src: Path, manifest: Manifest, data_dir: Path, shown: _Progress, content: str) -> None:
    staging = Staging.begin(data_dir, shown.told)
    try:
        for file in manifest.files:
            _refuse_path(file.path)
            if staging.copy(file.path, _read(src / file.path)) != file:
                raise _not_as_written(src / file.path, "its sum is another one")
        for job in sorted(staging.root.glob("jobs/*/*/data.mdb")):
            with Store.open(job.parent) as store:
                store.renew_incarnation(token_hex(16))
            (job.parent / "lock.mdb").unlink()
        staging.complete(content)
    except BaseException:
        staging.give_up()
        raise
    finally:
        shown.end()


def _read(path: Path) -> Iterable[bytes]:
    try:
        yield from pieces_of(path)
    except FileNotFoundError:
        raise _not_as_written(path, "it is not there") from None


def _refuse_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] not in PARTS or ".." in parts:
        raise Damaged(f"{MANIFEST} names {path}, which is no file of a data folder. Take another backup.")


def _not_as_written(path: Path, why: str) -> Damaged:
    return Damaged(f"{path} is not what the backup has written: {why}. Nothing was restored. Take another backup.")
