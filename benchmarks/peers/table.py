"""Who is compared: versions, programs, what they can do, what is to be reached. The one place to change a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
MSGSPEC = "msgspec==0.22.0"
"""The decoder of all Python programs, so that the decoder is not what is compared."""

ALL = {"windowed": 0, "stateless": 0, "words": 0}


@dataclass(frozen=True)
class Peer:
    """One column of the comparison."""

    name: str
    requirements: tuple[str, ...]
    """What its environment holds; the first is the peer itself. None of them: this interpreter's own environment."""

    program: Path | None = None
    form: str = ""
    """A variant of the program."""

    workloads: Mapping[str, int] = field(default_factory=dict)
    """What it can do, and with how many records at most, since a slow one would take all day (0: the full size)."""

    to_reach: Mapping[str, float] = field(default_factory=dict)
    """How many times as fast as this peer StreamActors is to be."""

    why_not: str = ""
    """Why there is no program, in one line."""

    pythons: tuple[str, ...] = ("3.11", "3.12")
    """Versions that its wheels are for, in order of preference."""

    @property
    def version(self) -> str:
        """The peer's own pin."""
        return self.requirements[0] if self.requirements else "this one"


PEERS = (
    Peer(
        "Bytewax",
        ("bytewax==0.21.1", MSGSPEC),
        PROGRAMS / "on_bytewax.py",
        workloads=ALL,
        to_reach={"windowed": 8.0, "stateless": 1.0, "words": 2.0},
    ),
    Peer("Bytewax, FileSource", ("bytewax==0.21.1", MSGSPEC), PROGRAMS / "on_bytewax.py", "files", ALL),
    Peer(
        "Flink SQL",
        ("apache-flink==2.3.0", MSGSPEC),
        PROGRAMS / "on_flink_sql.py",
        workloads=ALL,
        to_reach={"windowed": 1.2},
    ),
    Peer(
        "PyFlink, thread",
        ("apache-flink==2.3.0", MSGSPEC),
        PROGRAMS / "on_pyflink.py",
        "thread",
        {"windowed": 50_000},
    ),
    Peer(
        "PyFlink, process",
        ("apache-flink==2.3.0", MSGSPEC),
        PROGRAMS / "on_pyflink.py",
        "process",
        {"windowed": 50_000},
    ),
    Peer(
        "Pathway",
        ("pathway==0.33.0",),
        PROGRAMS / "on_pathway.py",
        workloads={"windowed": 0, "stateless": 0},
    ),
    Peer(
        "DuckDB, batch",
        ("duckdb==2.0.1",),
        PROGRAMS / "on_duckdb.py",
        workloads=ALL,
        to_reach={"windowed": 0.4},
    ),
    Peer(
        "Quix Streams",
        ("quixstreams==3.28.1",),
        why_not="needs a Kafka broker: sources write to a topic before anything reads it, nothing else carries records",
    ),
    Peer(
        "Faust",
        ("faust-streaming==0.15.3",),
        why_not="needs a Kafka broker: its transports are aiokafka and confluent, memory:// is refused as unknown",
    ),
)
