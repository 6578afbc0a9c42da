"""Dead letters as they lie in the log: whose they are, where, and what they say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import msgspec

from streamactors.core.errors import UsageError
from streamactors.durable.chunk import Chunk
from streamactors.durable.log import Log, Topic
from streamactors.durable.partition import Partition
from streamactors.flow.dead_letters import TOPIC_PREFIX, DeadLetter, topic_of

from .failures import complain
from .jobs import all_jobs

Record = tuple[str, int, int, int]
"""A record that letters are about: its source, partition and offset, and a checksum of its bytes."""

_decode = msgspec.json.Decoder(DeadLetter).decode


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter and where it lies."""

    region: str
    partition: int
    offset: int
    append_time_ms: int
    content: DeadLetter

    @property
    def position(self) -> str:
        """What the command line calls it: region, partition and offset of its topic."""
        return f"{self.region}/{self.partition}/{self.offset}"

    @property
    def origin(self) -> str:
        """Where its record was read, in words."""
        content = self.content
        return "" if content.source is None else f"{content.source}/{content.partition} at {content.offset}"

    @property
    def record(self) -> Record | None:
        """The record that it is about; None for what came from none, or from a source that keeps no bytes."""
        content = self.content
        if content.source is None or content.partition is None or content.offset is None or content.original is None:
            return None
        return content.source, content.partition, content.offset, crc32(content.original)

    def of_operator(self, name: str) -> bool:
        """Whether *name* is its operator: the path, or what stands behind the job's name."""
        return name in {self.content.operator, self.content.operator.partition("/")[2]}


async def letter_topics(log: Log, data_dir: Path, job: str) -> dict[str, Topic]:
    """Return the topics of a job's dead letters by region; refuse a job that nobody knows."""
    jobs = [found for found in all_jobs(data_dir) if found.name == job]
    prefix = f"{TOPIC_PREFIX}{job}."
    regions = {region for found in jobs for region in found.epochs}
    if not jobs:  # its state is gone; what it wrote is not
        regions = {name.removeprefix(prefix) for name in await log.topics() if name.startswith(prefix)}
    if not jobs and not regions:
        names = sorted({found.name for found in all_jobs(data_dir)})
        raise UsageError(f"there is no job {job} in {data_dir}. Jobs there: {', '.join(names) or 'none'}.")
    found = {region: await log.topic(topic_of(job, region)) for region in sorted(regions)}
    return {region: topic for region, topic in found.items() if topic is not None}


async def read_letters(region: str, topic: Topic) -> AsyncIterator[Letter]:
    """Yield the letters of a region, oldest first, without what only a closer look needs: value and traceback."""
    for number in range(topic.partitions):
        partition = topic.partition(number)
        async for chunk in chunks(partition, await partition.first_offset(), partition.durable_end()):
            for offset, value, time in zip(
                range(chunk.first, chunk.end), chunk.values(), chunk.append_times(), strict=True
            ):
                try:
                    content = msgspec.structs.replace(_decode(value), value="", traceback="")
                    yield Letter(region, number, offset, time, content)
                except msgspec.MsgspecError as error:
                    complain(f"{topic.name}/{number} at offset {offset} is no dead letter ({error}); left out.")


async def chunks(partition: Partition, start: int, end: int) -> AsyncIterator[Chunk]:
    """Yield the records that a partition holds from *start* to *end*."""
    reader = partition.reader(start)
    try:
        while reader.position < end:
            for chunk in await reader.read(max_records=end - reader.position):
                if chunk.first < end:  # records that were erased are passed over, also across the end
                    yield chunk.split(end - chunk.first)[0]
    finally:
        await reader.close()


def parse_position(text: str, topics: dict[str, Topic]) -> tuple[str, int, int]:
    """Return region, partition and offset of a position; those that leave no choice may be left out."""
    *front, offset = text.split("/")
    region, partition = "", ""
    if front:
        *before, partition = front
        region = "/".join(before)
    if not region and len(topics) == 1:
        region = next(iter(topics))
    if not partition and region in topics and topics[region].partitions == 1:
        partition = "0"
    if region not in topics or not (partition.isdecimal() and offset.isdecimal()):
        raise UsageError(
            f"{text!r} is no position of a dead letter. Give REGION/PARTITION/OFFSET, as `deadletters list` prints it. "
            f"Regions with dead letters: {', '.join(topics) or 'none'}."
        )
    return region, int(partition), int(offset)


async def letter_at(text: str, topics: dict[str, Topic]) -> Letter:
    """Return the letter at a position, or refuse it."""
    region, number, offset = parse_position(text, topics)
    topic = topics[region]
    if number < topic.partitions:
        partition = topic.partition(number)
        if await partition.first_offset() <= offset < partition.durable_end():
            async for chunk in chunks(partition, offset, offset + 1):
                try:
                    return Letter(region, number, offset, chunk.append_times()[0], _decode(chunk.values()[0]))
                except msgspec.MsgspecError as error:
                    raise UsageError(f"what stands at {text} is no dead letter: {error}.") from error
    raise UsageError(f"there is no dead letter at {text}. `streamactors deadletters list` shows which there are.")
