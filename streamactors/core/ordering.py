"""Entries in the order of their encoded keys, in turns of a few ms: a million of them keep the loop for seconds."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from .keys import CanonicalKey, encode_key
from .limits import BATCH_RECORDS_MAX, TURN_ENTRIES

Entry = tuple[CanonicalKey, Any]


def in_order(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """
    Yield *entries* in the order of their encoded keys, up to a batch of them at a time.

    An empty list is a turn in which nothing was ready yet. *entries* must not change before the last was given.

    Cost: about 2 µs an entry; beyond TURN_ENTRIES sorted runs are merged, which costs another 1.5 µs.
    """
    rest = iter(entries)
    runs: list[list[tuple[bytes, CanonicalKey, Any]]] = []
    while taken := list(islice(rest, TURN_ENTRIES)):
        if runs:
            yield []
        run = [(encode_key(key), key, value) for key, value in taken]
        run.sort(key=_encoded)
        runs.append(run)
    merged = chain.from_iterable(runs) if len(runs) < 2 else heapq.merge(*runs, key=_encoded)
    while rows := [(key, value) for _, key, value in islice(merged, BATCH_RECORDS_MAX)]:
        yield rows


def _encoded(entry: tuple[bytes, CanonicalKey, Any]) -> bytes:
    return entry[0]
