"""The jobs of a data folder, as their stores tell: what they read, what they write, how far they are.

For another process than those that run them; a store is opened to read, and closed again. ``maintenance`` keeps apart
what copies, adds or removes whole files of a data folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamactors.core.errors import UsageError
from streamactors.durable.catalogue import FIRST, Catalogue
from streamactors.durable.exchange import shadow_name
from streamactors.durable.files import RealDisk
from streamactors.durable.sharing import read_briefly
from streamactors.durable.store import Store
from streamactors.flow.dead_letters import topic_of

TOPIC_SINK = "topic."
"""What the id of a sink that writes a topic begins with."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a job's store says."""

    name: str
    version: str
    incarnation: str | None
    """None: nothing was committed yet."""

    epochs: dict[str, int]
    """The newest checkpoint of each region; 0 for one that has begun and has none."""

    reads: frozenset[str]
    """Names of its sources; those of topics among them."""

    writes: dict[str, str]
    """Each topic that it writes, and the region that does."""

    @property
    def label(self) -> str:
        """What messages call it: job and version."""
        return f"{self.name}/{self.version}"

    def uses(self, topic: str) -> list[str]:
        """Return what it does with *topic*, in words."""
        told = [
            (topic in self.reads, f"job {self.label} reads it"),
            (topic in self.writes, f"job {self.label} writes it"),
        ]
        return [what for does, what in told if does]


def job_folders(data_dir: Path) -> list[Path]:
    """Return the folders of all versions of all jobs that have stored something, sorted by name."""
    folders = sorted(folder for folder in (data_dir / "jobs").glob("*/*") if not folder.name.startswith("."))
    # A reserve without data.mdb is what is left of a job: opening it says that it is damaged.
    return [folder for folder in folders if (folder / "data.mdb").exists() or (folder / "reserve").exists()]


def all_jobs(data_dir: Path) -> list[JobFacts]:
    """Return the facts of all versions of all jobs. Raises Damaged, StorageError: a store can't be read."""
    found = []
    for folder in job_folders(data_dir):
        with read_briefly(folder) as store:
            found.append(facts_of(store))
    return found


def facts_of(store: Store) -> JobFacts:
    """Return the facts of the job of *store*."""
    from streamactors.graph.plan import SOURCE  # late: who shows a view needs no graph, and no asyncio

    name, served = store.folder.parent.name, store.folder.name == served_version(store.folder.parent)
    plan = store.plan or {}
    reads: set[str] = set()
    writes: dict[str, str] = {}
    for region in {*plan, *store.regions()}:
        operators = plan.get(region, {}).get("operators", {})
        reads |= {operator for operator, what in operators.items() if what["kind"] == SOURCE}
        topics = [operator.removeprefix(TOPIC_SINK) for operator in operators if operator.startswith(TOPIC_SINK)]
        known = [*topics, topic_of(name, region)]
        writes |= dict.fromkeys(known if served else [shadow_name(topic, store.folder.name) for topic in known], region)
    try:
        incarnation = store.identity().incarnation
    except UsageError:  # nobody's yet
        incarnation = None
    restored = {region: store.restore(region) for region in store.regions()}
    epochs = {region: 0 if last is None else last.epoch for region, last in restored.items()}
    return JobFacts(name, store.folder.name, incarnation, epochs, frozenset(reads), writes)


def served_version(folder: Path) -> str:
    """Return the version of the job in *folder* that is served."""
    versions = Catalogue(RealDisk(), folder).read()
    return FIRST if versions is None else versions.serving


def existing(data_dir: Path) -> Path:
    """Return *data_dir*, or refuse one that is not there."""
    if not data_dir.is_dir():
        raise UsageError(f"there is no folder {data_dir}. Check --data.")
    return data_dir


@contextmanager
def maintenance(data_dir: Path) -> Iterator[None]:
    """Keep others out that copy, add or remove whole files of *data_dir*; raise Held, with a pid, when one is at it."""
    lock = RealDisk().lock(data_dir / "maintenance.lock")
    try:
        yield
    finally:
        lock.release()
