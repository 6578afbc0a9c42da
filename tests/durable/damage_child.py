"""What test_damage.py runs in a process of its own, because the mistake that it looks for ends a process (SIGBUS).

``python damage_child.py <seed> <folder>``
"""

import os
import shutil
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2]))

from streamactors.core.codec import seal, unseal
from streamactors.core.errors import Damaged
from streamactors.durable.pages import first_missing
from streamactors.durable.store import Checkpoint, Delta, Store

PAGE = 4_096


def write(folder, random):
    """Commit random changes; return how often the file was whole and shorter than its meta page says."""
    short = 0
    with Store.open(folder, sync=False) as store:
        store.identity("j", new_id="1")
        store.begin_attempt("r")
        for epoch in range(1, random.randint(5, 40)):
            deltas = [delta(random, name) for name in random.sample(["x", "y", "z"], random.randint(1, 3))]
            store.commit(Checkpoint("r", 1, epoch, {"at": epoch}, deltas=deltas))
            path = folder / "data.mdb"
            assert first_missing(path) is None, f"epoch {epoch}: a whole file is taken for a cut one"
            short += path.stat().st_size < (store._environment.info()["last_pgno"] + 1) * PAGE
        return short, everything(store)


def delta(random, name):
    if random.random() < 0.3:  # pages are touched and then given back: they may never be written
        return Delta(name, deletes=[b"%04d" % n for n in range(random.randint(0, 800))])
    found = {b"%04d" % random.randint(0, 800): random.randbytes(int(random.random() ** 4 * 30_000)) for _ in range(200)}
    prefixes = [b"%d" % random.randint(0, 9)] if random.random() < 0.4 else []
    deletes = [b"%04d" % random.randint(0, 800) for _ in range(random.choice([0, 200, 600]))]
    return Delta(name, puts=[(key, seal(value)) for key, value in found.items()], deletes=deletes, prefixes=prefixes)


def everything(store):
    with store.snapshot() as snapshot:
        return {
            name: [(key, unseal(value, name)) for key, value in snapshot.scan(name)] for name in snapshot.databases()
        }


def look(folder):
    """Return what can be read of a store, or the error's text."""
    try:
        with Store.open(folder, read_only=True) as store:
            return everything(store)
    except Damaged as error:
        return str(error)


def main(seed, folder):
    random = Random(seed)
    short, whole = write(folder / "j", random)
    size = (folder / "j" / "data.mdb").stat().st_size
    refused = 0
    for cut in {0, 1, PAGE, *(random.randrange(0, size, PAGE) for _ in range(40)), *range(size - 5 * PAGE, size, PAGE)}:
        copy = folder / "cut"
        shutil.copytree(folder / "j", copy)
        os.truncate(copy / "data.mdb", cut)
        seen = look(copy)
        refused += isinstance(seen, str)
        assert seen == whole or isinstance(seen, str), f"cut at {cut} of {size}: rows are missing without a word"
        if isinstance(seen, str):
            assert "data.mdb" in seen, seen
        shutil.rmtree(copy)
    print(f"seed {seed}: {size // PAGE} pages, {refused} cuts refused, whole and short {short} times")  # noqa: T201 - its answer


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
