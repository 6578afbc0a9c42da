"""The life of an epoch, as a table.

An epoch is the stretch between two barriers; the checkpoint that ends it is one LMDB transaction. The ledger decides
what may happen next; the coordinator makes it happen.

    state         entered when                      a crash, or a restart of the region, then means
    ─────────     ───────────────────────────────   ────────────────────────────────────────────────────────────────
    ALIGNING      the barrier was asked for         the epoch never was; its number is burnt with the attempt
    HANDED_OVER   all members have handed over      the same: nothing is on disk yet
    COMMITTING    the writer thread has it          the commit is awaited: then the epoch is, or never was; never half
    COMMITTED     the commit has returned           the epoch is; its sinks' output is in it, recovery commits it
    SETTLED       every sink's target has answered  the epoch is; recovery finds its stamps in the targets, skips it

    end of input  a member that ended has handed over for its last epoch with the stream's last barrier; there is no
                  later epoch in this run
    abort         there is none: a slow epoch is reported, never given up (B1)

Invariants:

  (B1) At most one epoch is aligning, and at most one is between HANDED_OVER and SETTLED. N+1 may align while N commits.
  (B3) Epoch numbers strictly increase, over restarts too: the next is above the last committed one, and what bears an
       older attempt is dropped before it gets here.
  (E1) An epoch is committed only when every member has handed over its share, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class EpochState(Enum):
    """See the table in the module's header."""

    ALIGNING = "aligning"
    COMMITTING = "committing"
    COMMITTED = "committed"
    SETTLED = "settled"


class EpochLedger:
    """Count hand-overs and say what may happen next. Pure."""

    def __init__(self, members: Iterable[str], *, last: int) -> None:
        self.members = frozenset(members)
        self.settled = last
        """The last epoch that is durable and visible outside."""

        self._last = last
        self._aligning: int | None = None
        self._missing: set[str] = set()
        self._finishing: tuple[int, EpochState] | None = None

    @property
    def may_start(self) -> bool:
        """Whether another epoch may begin to align."""
        return self._aligning is None

    @property
    def waiting_for(self) -> frozenset[str]:
        """Members that have not handed over the epoch that is aligning."""
        return frozenset(self._missing)

    def state(self, epoch: int) -> EpochState:
        """Return where *epoch* is in its life."""
        if epoch == self._aligning:
            return EpochState.ALIGNING
        if self._finishing is not None and self._finishing[0] == epoch:
            return self._finishing[1]
        assert epoch <= self.settled, f"epoch {epoch} was never started"
        return EpochState.SETTLED

    def start(self) -> int:
        """Begin the next epoch; return its number."""
        assert self._aligning is None, f"B1: epoch {self._aligning} is still aligning"
        self._last += 1
        self._aligning = self._last
        self._missing = set(self.members)
        return self._aligning

    def hand_over(self, member: str, epoch: int) -> bool:
        """Note that *member* handed over; return whether the epoch is complete."""
        assert epoch == self._aligning, f"B3: {member} handed over epoch {epoch} while {self._aligning} is aligning"
        assert member in self._missing, f"E1: {member} handed over epoch {epoch} twice, or is no member"
        self._missing.remove(member)
        return not self._missing

    def commit(self, epoch: int) -> None:
        """The writer thread is given *epoch*."""
        assert epoch == self._aligning, f"E1: epoch {epoch} is committed while {self._aligning} is aligning"
        assert not self._missing, f"E1: epoch {epoch} is committed without {sorted(self._missing)}"
        assert self._finishing is None, f"B1: epoch {epoch} is committed before {self._finishing} is settled"
        self._aligning = None
        self._finishing = (epoch, EpochState.COMMITTING)

    def committed(self, epoch: int) -> None:
        """The commit of *epoch* has returned."""
        assert self._finishing == (epoch, EpochState.COMMITTING), f"epoch {epoch} was not committing"
        self._finishing = (epoch, EpochState.COMMITTED)

    def settle(self, epoch: int) -> None:
        """Every sink's target has answered for *epoch*."""
        assert self._finishing == (epoch, EpochState.COMMITTED), f"epoch {epoch} was not committed"
        assert epoch > self.settled, f"B3: epoch {epoch} settles after {self.settled}"
        self._finishing = None
        self.settled = epoch
