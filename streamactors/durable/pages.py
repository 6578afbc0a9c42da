"""Whether a data.mdb is all there: asked before it is mapped, by reading it as a file.

LMDB maps its file. To read a page that lies behind the file's end is not an error there but the end of the process
(SIGBUS), and LMDB does not look before. A copy that broke off, or a disk that lost the tail, must be an error with a
name.

The length alone does not tell. A commit writes no page that it took and gave back again, so a whole file may be shorter
than its newest meta page says. Then, which is rare, every page that can be reached is visited, and one behind the end
is damage. All others are free: LMDB only ever writes to them.

The format is that of LMDB 0.9 (data version 1, lmdb.h and mdb.c), on a machine of 64 bits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE = struct.Struct("=QHHHH")  # number, pad, flags, lower, upper
_DB = struct.Struct("=IHHQQQQQ")  # pad (of the free database: the size of a page), ..., root
_META = struct.Struct("=IIQQ48s48sQQ")  # magic, version, address, map size, free database, main one, last page, txn
_NODE = struct.Struct("=HHHH")  # low and high half of size or page, flags, size of the key
_BRANCH, _LEAF = 0x01, 0x02
_BIG_VALUE, _DATABASE = 0x01, 0x02
_MAGIC = 0xBEEFC0DE
_EMPTY = 2**64 - 1
_TRIES = 4
_PAGE_BYTES_MIN = 4_096


@dataclass(frozen=True, slots=True)
class _Meta:
    page_bytes: int
    roots: tuple[int, int]
    last: int
    transaction: int


def first_missing(path: Path) -> int | None:
    """Return the position of a page that is in use and lies behind the end of the file; None: it is all there."""
    if struct.calcsize("P") != 8:
        return None
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            meta = _newest(file)
            size = os.fstat(file).st_size  # behind the look at the meta page: the file only grows
            if meta is None:
                return size if size < 2 * _PAGE_BYTES_MIN else None  # what is no LMDB file, LMDB itself refuses
            if size >= (meta.last + 1) * meta.page_bytes:
                return None
            missing = next(_missing(file, meta, size // meta.page_bytes), None)
            found = _newest(file)
            if missing is None or found is None or found.transaction == meta.transaction:
                return None if missing is None else missing * meta.page_bytes
            # Somebody commits meanwhile, and may have used a page anew that we were about to visit.
        return None
    finally:
        os.close(file)


def _newest(file: int) -> _Meta | None:
    first = _meta(file, 0)
    if first is None:
        return None
    second = _meta(file, first.page_bytes)
    return first if second is None else max(first, second, key=lambda meta: meta.transaction)


def _meta(file: int, position: int) -> _Meta | None:
    data = os.pread(file, _META.size, position + _PAGE.size)
    if len(data) < _META.size:
        return None
    magic, _, _, _, free, main, last, transaction = _META.unpack(data)
    page_bytes = _DB.unpack(free)[0]
    if magic != _MAGIC or not 512 <= page_bytes <= 65_536:
        return None
    return _Meta(page_bytes, (_DB.unpack(free)[-1], _DB.unpack(main)[-1]), last, transaction)


def _missing(file: int, meta: _Meta, pages: int) -> Iterator[int]:
    """Yield the pages in use that are not among the first *pages*."""
    waiting = [root for root in meta.roots if root != _EMPTY]
    seen = set(waiting)
    while waiting:
        number = waiting.pop()
        if number >= pages:
            yield number
            continue
        for found in _referred(os.pread(file, meta.page_bytes, number * meta.page_bytes), meta.page_bytes):
            if found.last >= pages:
                yield pages
            elif not found.value and found.first not in seen:
                seen.add(found.first)
                waiting.append(found.first)


@dataclass(frozen=True, slots=True)
class _Found:
    first: int
    last: int
    value: bool  # pages of a value that refer to no others


def _referred(page: bytes, page_bytes: int) -> Iterator[_Found]:
    """Yield what a page refers to."""
    _, _, flags, lower, _ = _PAGE.unpack_from(page)
    for (at,) in struct.iter_unpack("=H", page[_PAGE.size : max(_PAGE.size, lower & ~1)]):
        if at + _NODE.size > len(page):
            continue  # LMDB itself stumbles over this one
        low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
        data = at + _NODE.size + key_bytes
        if flags & _BRANCH:
            number = low | high << 16 | node_flags << 32
            yield _Found(number, number, value=False)
        elif flags & _LEAF and node_flags & _BIG_VALUE and data + 8 <= len(page):
            number = int.from_bytes(page[data : data + 8], "little")
            count = (_PAGE.size + (low | high << 16) + page_bytes - 1) // page_bytes
            yield _Found(number, number + count - 1, value=True)
        elif flags & _LEAF and node_flags & _DATABASE and data + _DB.size <= len(page):
            root = _DB.unpack_from(page, data)[-1]
            if root != _EMPTY:
                yield _Found(root, root, value=False)
