"""What a job promises about crashes, and what follows from it: two decisions, taken once, when a job is wired.

    guarantee        keeps    at once   a crash loses            a crash repeats
    ─────────────    ─────    ───────   ─────────────────────    ─────────────────────────────────────────────
    exactly-once     yes      no        nothing                  nothing
    at-least-once    yes      yes       nothing                  what was shown since the last checkpoint
    at-most-once     no       yes       state, and what was      nothing
                                        not read or in flight

*keeps*: state and position survive, so barriers are sent, checkpoints are taken, and a start goes on from the last one.
*at once*: views show a change in this process, and sinks write it, before it is durable.

A job keeps its guarantee, or changes between the two that keep: a checkpoint means the same to both. Pending output
that exactly-once has left is committed, with its stamps, by the first start of whichever comes next; what is written at
once bears no stamp and changes none, so the chain goes on where exactly-once left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamactors.core.connectors import Guarantee, Replay
from streamactors.core.errors import PipelineError, UsageError
from streamactors.durable.store import Store
from streamactors.graph.plan import RegionPlan


@dataclass(frozen=True, slots=True)
class Promise:
    """What a guarantee means for the wiring. See the table in the module's header."""

    keeps: bool
    at_once: bool
    replays: frozenset[Replay]
    """What a source must be able to give again."""


PROMISES = {
    Guarantee.EXACTLY_ONCE: Promise(keeps=True, at_once=False, replays=frozenset({Replay.BY_OFFSET})),
    Guarantee.AT_LEAST_ONCE: Promise(
        keeps=True, at_once=True, replays=frozenset({Replay.BY_OFFSET, Replay.UNACKNOWLEDGED})
    ),
    Guarantee.AT_MOST_ONCE: Promise(keeps=False, at_once=True, replays=frozenset(Replay)),
}


def guarantee_of(wanted: Guarantee | str) -> Guarantee:
    """Return the guarantee that *wanted* names."""
    try:
        return Guarantee(wanted)
    except ValueError as error:
        names = ", ".join(guarantee.value for guarantee in Guarantee)
        raise UsageError(f"guarantee {wanted!r} is none of {names}. Give one of them.") from error


def refuse_sources(plans: Sequence[RegionPlan], guarantee: Guarantee) -> None:
    """Refuse a source that can't give again what the guarantee needs; nothing was changed yet."""
    for plan in (source for region in plans for source in region.sources):
        if plan.source.replay not in PROMISES[guarantee].replays:
            able = [other.value for other in Guarantee if plan.source.replay in PROMISES[other].replays]
            raise PipelineError(
                f"source {plan.id} ({plan.node.where}) gives again after a crash: {plan.source.replay.value}. "
                f"{guarantee.value} can't be kept with it. Write it to the log first, .through_log({plan.id!r}), and "
                f"read from there, or run with the guarantee {' or '.join(able)}."
            )


def refuse_switch(store: Store, guarantee: Guarantee, folder: Path) -> None:
    """Refuse to go on from what a run under an incompatible guarantee has left; note the new one."""
    stored = Guarantee(store.guarantee or Guarantee.EXACTLY_ONCE)
    if PROMISES[stored].keeps != PROMISES[guarantee].keeps and store.regions():
        kept, missing = ("state and position", "none") if PROMISES[stored].keeps else ("neither", "both")
        raise PipelineError(
            f"the job in {folder} has run as {stored.value}, which keeps {kept}; {guarantee.value} needs {missing}. "
            f"Run it with the guarantee {stored.value}, or give the pipeline another name, or another data folder, "
            "and let it start anew."
        )
    if stored is not guarantee:
        store.save_guarantee(guarantee.value)
