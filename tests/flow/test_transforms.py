"""Stateless operators, on append and on upsert streams."""

import pytest

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.core.keys import Key
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.flow.async_transforms import AsyncFilter, AsyncFlatMap, AsyncMap
from streamactors.flow.transforms import Filter, FlatMap, KeyBy, Map, Originals, Row, Rows
from tests.flow.fakes import Part, rows


class Origin:
    source, partition = "clicks", 0

    def originals(self, offsets):
        return [b"original %d" % offset for offset in offsets]


def appended(values):
    n = len(values)
    return Batch(values, list(range(100, 100 + n)), ["k"] * n, offsets=list(range(n)), origin=Origin())


def upserted(*pairs):
    """Rows of one key in windows 0, 1, ...: (value, kind)."""
    values, kinds = map(list, zip(*pairs, strict=True))
    n = len(values)
    return Batch(values, [9] * n, ["k"] * n, windows=[(i, i + 1) for i in range(n)], kinds=kinds)


def run(operator, *batches):
    out = []
    operator.emit = out.append
    operator.open(Part().context())
    for batch in batches:
        operator.on_batch(batch)
    return out


def never(value):
    raise AssertionError("called")


def test_map_keeps_every_column_but_the_values():
    (out,) = run(Map(str), appended([1, 2]))
    assert rows([out]) == [("k", "1", 100, None, None, 0), ("k", "2", 101, None, None, 1)]


def test_map_leaves_a_delete_alone():
    (out,) = run(Map(lambda v: v + 1), upserted((1, Kind.EARLY), (None, Kind.DELETE), (3, Kind.ON_TIME)))
    assert out.values == [2, None, 4]
    assert out.kinds == [Kind.EARLY, Kind.DELETE, Kind.ON_TIME]
    assert out.windows == [(0, 1), (1, 2), (2, 3)]


def test_filter_keeps_offsets_and_times_of_what_is_kept():
    (out,) = run(Filter(lambda v: v % 2), appended([1, 2, 3]))
    assert rows([out]) == [("k", 1, 100, None, None, 0), ("k", 3, 102, None, None, 2)]


def test_filter_that_keeps_all_emits_the_very_batch():
    batch = appended([1, 2])
    assert run(Filter(lambda v: True), batch) == [batch]


def test_filter_that_keeps_nothing_emits_nothing():
    assert run(Filter(lambda v: False), appended([1, 2])) == []


def test_filter_turns_a_dropped_result_into_a_delete_of_its_row():
    batch = upserted((1, Kind.EARLY), (2, Kind.CORRECTION), (None, Kind.DELETE), (4, Kind.UPDATE))
    (out,) = run(Filter(lambda v: v == 1), batch)
    assert out.values == [1, None, None, None]
    assert out.kinds == [Kind.EARLY, Kind.DELETE, Kind.DELETE, Kind.DELETE]


def test_filter_just_drops_a_final_result():
    """Nothing of its key and window can have passed before."""
    (out,) = run(Filter(lambda v: v > 1), upserted((1, Kind.FINAL), (2, Kind.FINAL)))
    assert rows([out]) == [("k", 2, 9, (1, 2), Kind.FINAL, None)]


def test_flat_map_repeats_the_other_columns():
    (out,) = run(FlatMap(str.split), appended(["a b", "", "c"]))
    assert rows([out]) == [
        ("k", "a", 100, None, None, 0),
        ("k", "b", 100, None, None, 0),
        ("k", "c", 102, None, None, 2),
    ]
    assert out.originals() == [b"original 0", b"original 0", b"original 2"]


def test_flat_map_takes_generators_and_names_the_record_whose_generator_raised():
    def halves(value):
        yield value / 2
        yield 1 / value

    assert run(FlatMap(halves), appended([2]))[0].values == [1, 0.5]
    with pytest.raises(BadRecord, match=r"record 0 \(clicks/0 at offset 1\): ZeroDivisionError.*test_transforms.py"):
        run(FlatMap(halves), appended([1, 0, 2]))


def test_flat_map_refuses_a_text_that_it_would_take_apart():
    with pytest.raises(BadRecord, match=r"offset 1.*apart into characters"):
        run(FlatMap(lambda v: [v] if v == "a" else v), appended(["a", "bc"]))


def test_flat_map_emits_batches_of_the_usual_size():
    out = run(FlatMap(range), appended([3000]))
    assert [len(batch) for batch in out] == [BATCH_RECORDS_MAX, 3_000 - BATCH_RECORDS_MAX]


def test_flat_map_into_nothing_emits_nothing():
    assert run(FlatMap(lambda v: []), appended([1])) == []


def test_key_by_gives_canonical_keys_and_ends_windows():
    batch = upserted((1, Kind.FINAL), (2, Kind.FINAL))
    (out,) = run(KeyBy(lambda v: (v, "x")), batch)
    assert [key.value for key in out.keys] == [(1, "x"), (2, "x")] and type(out.keys[0]) is Key
    assert out.windows is None and out.kinds is None


def test_key_by_names_the_record_whose_key_is_none_of_the_kinds():
    with pytest.raises(BadRecord, match=r"offset 1.*can't be a key"):
        run(KeyBy(lambda v: v), appended([1, {"a": 1}]))


def test_rows_are_plain_values_and_append_only():
    (out,) = run(Rows(), upserted((5, Kind.ON_TIME), (None, Kind.DELETE)))
    assert out.values == [Row("k", 5, 0, 1, "on_time"), Row("k", None, 1, 2, "delete")]
    assert out.kinds is None and out.windows is None and out.keys == ["k", "k"]


def test_rows_of_a_plain_stream_have_neither_window_nor_kind():
    (out,) = run(Rows(), Batch([5]))
    assert out.values == [Row(None, 5)]


def test_originals_stand_in_for_the_values():
    (out,) = run(Originals(), appended([1, 2]))
    assert out.values == [b"original 0", b"original 1"]


def test_an_error_of_a_user_function_names_operator_record_place_and_line():
    with pytest.raises(BadRecord) as caught:
        run(Map(lambda v: 1 // v), appended([1, 0]))
    message = str(caught.value)
    assert "job/op[0]" in message and "clicks/0 at offset 1" in message and "test_transforms.py:" in message


def test_an_error_inside_c_code_does_not_point_at_our_own_lines():
    with pytest.raises(BadRecord) as caught:
        run(Map(int), appended(["1", "x"]))
    assert "offset 1" in str(caught.value) and ".py" not in str(caught.value)


def test_a_stop_iteration_of_a_user_function_loses_no_records():
    with pytest.raises(BadRecord, match=r"offset 1.*StopIteration"):
        run(Map(lambda v: v or next(iter(()))), appended([1, 0, 2]))


async def coroutine(value):
    return value


@pytest.mark.parametrize("operator", [Map, Filter, FlatMap, KeyBy])
def test_a_coroutine_function_is_refused_where_nobody_awaits_it(operator):
    with pytest.raises(PipelineError, match="coroutine"):
        operator(coroutine)


def test_a_function_that_hands_out_coroutines_is_refused():
    with pytest.raises(PipelineError, match="nobody would await"):
        run(Map(lambda v: coroutine(v + 1)), appended([1, 2]))


@pytest.mark.parametrize("operator", [AsyncMap, AsyncFilter, AsyncFlatMap])
def test_a_plain_function_is_refused_where_it_would_be_awaited(operator):
    with pytest.raises(PipelineError, match="not a coroutine function"):
        operator(never)


async def awaited(operator, batch):
    operator.open(Part().context())
    return await operator.on_batch_async(batch)


async def test_awaited_functions_run_one_after_another_in_order():
    running, order = [], []

    async def double(value):
        assert not running
        running.append(value)
        order.append(running.pop())
        return value * 2

    out = await awaited(AsyncMap(double), appended([1, 2, 3]))
    assert out.values == [2, 4, 6] and order == [1, 2, 3] and out.offsets == [0, 1, 2]


async def test_awaited_forms_do_what_the_plain_ones_do():
    async def odd(value):
        return value % 2

    async def twice(value):
        yield value
        yield value

    async def listed(value):
        return [value] * value

    batch = upserted((1, Kind.EARLY), (None, Kind.DELETE), (2, Kind.EARLY))
    assert (await awaited(AsyncFilter(odd), batch)).kinds == [Kind.EARLY, Kind.DELETE, Kind.DELETE]
    assert (await awaited(AsyncFlatMap(twice), appended([1, 2]))).values == [1, 1, 2, 2]
    assert (await awaited(AsyncFlatMap(listed), appended([0, 2]))).offsets == [1, 1]


async def test_an_awaited_function_that_raises_names_its_record():
    async def refuse(value):
        raise ValueError("no")

    with pytest.raises(BadRecord, match=r"offset 0\): ValueError: no \(in test_transforms.py"):
        await awaited(AsyncMap(refuse), appended([1]))
