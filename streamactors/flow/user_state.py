"""The state of user functions: what it may be, and why a function never meets it in two forms.

(T1) demands that a restart changes nothing, (T2) that batches don't matter. Stored state comes back through
MessagePack, which turns a tuple into a list and a struct into a dict. So a function would meet a tuple before a
restart and a list after it, at a moment that it can't know. Therefore:

  Rule 1. The state that a function is given is *always* what MessagePack makes of what was returned, after one
          record as after a restart. Write ``[a, b]``, or unpack it (``a, b = state``), and there is nothing to see.
  Rule 2. A function may change the state it was given in place: it is a copy of its own. What it has returned is
          encoded at once, so a later change reaches nobody.
  Rule 3. An object (a struct, a dataclass) needs ``state_type``; it is then decoded into that type, every time.

Held form: str, int, float and bool as they are (MessagePack keeps them); anything else as its encoding, ``bytes``.
That costs an encode and a decode for each record (0.3 µs for a short list) and keeps a million states out of the
garbage collector's sight. None is never a state: it means that there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streamactors.core.codec import decode_value, encode_value

ATOMS: frozenset[type] = frozenset({str, int, float, bool})
"""Types that are held as they are."""

_BUILTIN = (bytes, list, tuple, dict)
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def fit_64_bits(numbers: list[int]) -> bool:
    """Return whether MessagePack can hold all of *numbers*, at least one."""
    return min(numbers) >= _INT_MIN and max(numbers) <= _INT_MAX


class StateForm:
    """Turn state between what a function sees and what is held."""

    __slots__ = ("_atoms", "decode", "state_type")

    def __init__(self, state_type: Any = None) -> None:
        self.state_type = state_type
        self._atoms = ATOMS if state_type is None else ATOMS & {state_type}
        self.decode: Callable[[bytes], Any] = (
            decode_value if state_type is None else msgspec.msgpack.Decoder(state_type).decode
        )

    def pack(self, state: Any) -> Any:
        """Return the held form of *state*: never None unless it is None. Raises TypeError for what can't be held."""
        if state is None:
            return None
        kind = type(state)
        if kind in self._atoms:
            if kind is int and not _INT_MIN <= state <= _INT_MAX:
                raise TypeError(f"the state {state} does not fit into 64 bits")
            return state
        if self.state_type is None and kind not in _BUILTIN:
            raise TypeError(
                f"a state of type {kind.__name__} would come back as something else. Return numbers, text, bytes, "
                "lists and dicts, or pass state_type"
            )
        encoded = encode_value(state)
        if self.state_type is not None:
            self.decode(encoded)  # now, while the record that made it is known, and not after a restart
        return encoded

    def pack_seen(self, seen: Any) -> Any:
        """Return the held form of a state that is given as builtins, or as an object: what packing the object gives."""
        if seen is None or self.state_type is None:
            return self.pack(seen)
        return self.pack(msgspec.convert(seen, self.state_type))

    def unpack(self, held: Any) -> Any:
        """Return a copy of the state for a function, or None."""
        return self.decode(held) if type(held) is bytes else held
