"""Every built-in source keeps the contract, in every mode of ``check_source``."""

import asyncio
from dataclasses import replace
from random import Random

import pytest

from connectors.files import JsonLines, MatchingJsonLines, MatchingTextLines, TextLines
from connectors.iterators import AsyncItems
from connectors.log_ingest import ThroughLog
from connectors.memory import Items
from connectors.push import Push
from connectors.ticks import Ticks
from connectors.topic import TopicSource
from streamactors.core.connectors import World
from streamactors.durable.log import Log
from streamactors.durable.realtime import real_ports
from streamactors.testing.check_source import check_source
from streamactors.testing.clock import START_MS, ManualClock
from streamactors.testing.source import Deliveries, Script

VALUES = [{"n": n, "text": "x" * (n % 7)} for n in range(23)]
LINES = "".join(f'{{"n":{v["n"]},"text":"{v["text"]}"}}\n' for v in VALUES)


@pytest.fixture
async def world(data_dir):
    ports = real_ports()
    async with Log(data_dir, ports) as log:
        yield World(data_dir, ports, log, bounded=True)
    await ports.threads.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


async def test_a_topic(world):
    topic = await world.log.create_topic("t", 2)
    await topic.append_many([line.encode() for line in LINES.splitlines()])
    checked = await check_source(lambda: TopicSource("t"), world, expected=[VALUES[0::2], VALUES[1::2]])
    assert checked.records == [12, 11]


async def test_files(world, folder):
    (folder / "a").write_text(LINES)
    (folder / "b").write_text("x\r\ny\n\nz")
    await check_source(lambda: JsonLines(folder / "a"), world, expected=[VALUES])
    texts = [LINES.splitlines(), ["x", "y", "", "z"]]
    await check_source(lambda: TextLines(folder / "a", folder / "b"), world, expected=texts)


async def test_files_by_pattern(world, folder):
    for name, text in [("b", "x\ny\n"), ("a", LINES), ("c", "1\n2")]:
        (folder / name).write_text(text)
    lines = LINES.splitlines()
    await check_source(lambda: MatchingTextLines(folder / "*"), world, expected=[[*lines, "x", "y", "1", "2"]])
    await check_source(lambda: MatchingJsonLines(folder / "[ac]"), world, expected=[[*VALUES, 1, 2]])


async def test_items_and_scripts(world):
    await check_source(lambda: Items(VALUES), world, expected=[VALUES])
    await check_source(lambda: Script(VALUES, [1]), world, expected=[VALUES, [1]])


async def test_ticks(world):
    clock = ManualClock(START_MS + 20_000)
    world = replace(world, ports=replace(world.ports, clock=clock))
    ticks = [START_MS + 1_000 * n for n in range(21)]
    await check_source(lambda: Ticks("1s", since=START_MS - 5), world, expected=[ticks])


async def test_an_async_iterator(world):
    async def items():
        for number, value in enumerate(VALUES):
            if number % 5 == 0:
                await asyncio.sleep(0)
            yield value

    checked = await check_source(lambda: AsyncItems(items), world, expected=[VALUES])
    assert "reopened everywhere" not in checked.modes
    await check_source(lambda: AsyncItems(items()), world, expected=[VALUES])


async def send(push):
    first = asyncio.create_task(push.send_many(VALUES[:20]))
    await asyncio.sleep(0)
    second = asyncio.create_task(push.send_many(VALUES[20:]))
    await asyncio.sleep(0)
    push.close()
    await asyncio.gather(first, second)


async def test_a_push(world):
    checked = await check_source(Push, world, expected=[VALUES], feed=send)
    assert {"acknowledged", "told twice"} <= set(checked.modes)


async def test_scripted_deliveries(world):
    await check_source(lambda: Deliveries(VALUES, [1, 2], redelivery=Random(1)), world, expected=[VALUES, [1, 2]])


@pytest.mark.parametrize("name", ["items", "iterator", "push", "deliveries", "text", "json"])
async def test_any_of_them_through_the_log(world, folder, name):
    async def items():
        for value in VALUES:
            yield value

    (folder / "f").write_text(LINES)
    inner, feed = {
        "items": (Items(VALUES), None),
        "iterator": (AsyncItems(items()), None),
        "push": (Push(), send),
        "deliveries": (Deliveries(VALUES, redelivery=Random(1)), None),
        "text": (TextLines(folder / "f"), None),
        "json": (MatchingJsonLines(folder / "f*"), None),
    }[name]
    encoding = getattr(inner, "encoding", None) or "json"
    if name in ("iterator", "push"):  # these give what they hold once: fill the topic, then check what it gives
        source = ThroughLog(inner, TopicSource(name, inner.type, encoding))
        await source.ends(world)
        reader = await source.reader(world, 0, 0)
        feeding = asyncio.create_task(feed(inner)) if feed else asyncio.create_task(asyncio.sleep(0))
        await feeding
        await asyncio.wait([source.ingest.task])
        await reader.close()
        source.job_ended()
        inner = Items([], id=inner.id)
    expected = LINES.splitlines() if name == "text" else VALUES
    await check_source(lambda: ThroughLog(inner, TopicSource(name, inner.type, encoding)), world, expected=[expected])
