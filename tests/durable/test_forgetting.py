"""A store that forgets: rows go in one transaction, and the file is written anew so that no byte of them is left."""

from random import Random

import pytest

from streamactors.core.codec import encode_value, seal
from streamactors.core.keys import canonical_key, encode_key, key_group
from streamactors.durable.compaction import compact
from streamactors.durable.forgetting import forget, look_for
from streamactors.durable.rows import GROUP_BYTES, encode_rows, namespace_bytes
from streamactors.durable.store import Store
from streamactors.durable.subject import subject
from streamactors.durable.writing import Delta

HER = "ada@example.org"


def state_rows(entries):
    keys = [encode_key(canonical_key(key)) for _, key, _ in entries]
    heads = [GROUP_BYTES[key_group(k)] + namespace_bytes(n) for (n, _, _), k in zip(entries, keys, strict=True)]
    return encode_rows(heads, keys, [value for _, _, value in entries])


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_the_key_go_in_all_namespaces_and_all_others_stay(tmp_path, seed):
    """The oracle is a filter over a list of (namespace, key, value)."""
    random = Random(seed)
    people = [HER, "bob", 4711, "4711", b"bytes", None, True, 1.5, "x" * 700, HER + "x"]
    keys = people + [[person, 60_000] for person in people] + [["quiz", person] for person in people]
    entries = {
        (random.choice([None, 0, -5, 60_000]), encode_key(canonical_key(key))): (key, random.randrange(9))
        for key in random.choices(keys, k=200)
    }
    listed = [(namespace, key, value) for (namespace, _), (key, value) in entries.items()]
    with Store.open(tmp_path) as store:
        store.amend([Delta("state:a:b", puts=state_rows(listed))])
        whose = subject(random.choice([HER, "4711", "x" * 700]))
        goes = [whose.has_key(key) for _, key, _ in listed]
        found = look_for(store, whose, {})
        assert found.state == ({"a:b": sum(goes)} if any(goes) else {})
        forget(store, found)
        kept = [entry for entry, gone in zip(listed, goes, strict=True) if not gone]
        with store.snapshot() as snapshot:
            assert snapshot.scan("state:a:b") == sorted(state_rows(kept))
        assert look_for(store, whose, {}).rows == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_compacted_file_holds_no_byte_of_what_was_deleted_and_every_row_of_the_rest(tmp_path, seed):
    """Pages of large values, too: LMDB's own copy leaves what stood behind those."""
    random = Random(seed)
    with Store.open(tmp_path) as store:
        for _ in range(30):
            hers = [(encode_value([HER, random.randrange(2_000)]), seal(HER.encode() * 3)) for _ in range(500)]
            large = [(b"k%d" % random.randrange(300), b"." * random.randrange(1_500, 9_000)) for _ in range(100)]
            store.amend([Delta("view:a", puts=hers), Delta("view:b", puts=[(k, seal(v)) for k, v in large])])
        store.amend([Delta("empty")])
        with store.snapshot() as snapshot:
            deleted = [key for key, _ in snapshot.scan("view:a")]
        store.amend([Delta("view:a", deletes=deleted)])
        with store.snapshot() as snapshot:
            rows = {database: snapshot.scan(database) for database in snapshot.databases()}
    assert HER.encode() in (tmp_path / "data.mdb").read_bytes()

    sizes = compact(tmp_path)
    content = (tmp_path / "data.mdb").read_bytes()
    assert HER.encode() not in content and len(content) == sizes.bytes_after < sizes.bytes_before
    with Store.open(tmp_path) as store, store.snapshot() as snapshot:
        assert {database: snapshot.scan(database) for database in snapshot.databases()} == rows
