"""Keyed state that no checkpoint holds: at-most-once keeps it in memory and begins empty after a crash.

The same contract for operators as in state.py, without what durability costs: nothing is dirty, nothing freezes, and an
entry that was deleted is gone instead of known to be absent. Nothing is evicted either: there is no store to read it
from again, so what the operators hold must fit in memory.
"""

from __future__ import annotations

from typing import Any

from streamactors.core.keys import CanonicalKey

from .rows import Namespace
from .state import KeyedState
from .store import Store


class VolatileState(KeyedState):
    """State in dicts alone. See the module's header."""

    def __init__(self, store: Store, database: str, groups: range) -> None:
        super().__init__(store, database, groups)
        assert self._fresh, f"{database} holds state of a run that kept it: its guarantee was another"

    def put_many(self, namespace: Namespace, updates: dict[CanonicalKey, Any]) -> None:
        live = self._space(namespace).live
        live.update(updates)
        for key in [key for key, value in updates.items() if value is None]:
            del live[key]
        if not live:
            del self._spaces[namespace]

    def drop(self, namespace: Namespace) -> None:
        self._spaces.pop(namespace, None)
