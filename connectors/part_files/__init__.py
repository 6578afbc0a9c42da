"""Folders of part files as sinks, exactly once: JSON lines and Parquet.

Each epoch with output gives a part file (each partition of the folder has its own; a large epoch gives several). A part
appears whole, under its final name, and is not touched again: who reads the folder may move it away or remove it at
once. How it appears exactly once all the same is told in staging.py.

    JOB@SINK-pPARTITION-GENERATION-EPOCH-PART.jsonl
    quiz@json_lines.answers-p0000-0001-0000000012-00001.jsonl

Within a partition names sort in the order of their content. GENERATION rises when the job starts anew from nothing.
Names that begin with a dot are ours: they are not to be moved. A row's key decides its partition, or its offset where
there is no key.

    JSON lines   each value as its JSON; bytes are taken for JSON. NaN is null, as in all JSON.
    Parquet      columns of one schema: ``schema``, or what the stream's type says, or what the values of the first
                 epoch say. The folder keeps it (.SINK.schema), and a value that does not fit is refused in the stage.

A version of the job that is not its first writes the folder FOLDER.LABEL, and goes on there when it is promoted: no
system exchanges two folders in one step under the eyes of who moves files out of them.

Both append: a stream of corrections is refused when the graph is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamactors.core.connectors import World
from streamactors.core.errors import PipelineError, UsageError
from streamactors.core.fields import target_name

from . import parquet
from .staging import read_file, replace_file
from .target import FolderTarget
from .writers import JsonLinesWriter


@dataclass(eq=False)
class _Folder:
    """What both sinks share."""

    folder: Path | str
    partition_count: int = 1
    name: str | None = None
    """The sink's id; stamps are found again by it. None: made of the folder's name."""

    upserts = False
    kind = ""

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if not 1 <= self.partition_count <= 9_999:
            raise UsageError(f"{self}: partition_count={self.partition_count} is not between 1 and 9,999.")

    def __str__(self) -> str:
        return f"{self.kind} in {self.folder}"

    @property
    def id(self) -> str:
        """Of the folder's name; what it stands in may be moved."""
        return self.name if self.name is not None else target_name(self.kind, Path(self.folder).resolve().name)

    @property
    def address(self) -> tuple[str, ...]:
        """The folder of the job's first version; each other one goes on in its own, promoted or not."""
        return "folder", str(Path(self.folder).resolve())

    def _place(self, world: World) -> Path:
        folder = Path(self.folder)
        return folder if world.label is None else folder.with_name(f"{folder.name}.{world.label}")

    async def partitions(self, world: World) -> int:
        """Make the folder when it is not there."""
        folder = self._place(world)
        await world.ports.threads.run(f"part_files/{folder}", world.ports.disk.make_folder, folder)
        return self.partition_count


@dataclass(eq=False)
class JsonLinesFolder(_Folder):
    """Part files of JSON lines in *folder*. See the module's header."""

    kind = "json_lines"

    def writer(self, partitions: int) -> JsonLinesWriter:
        """Return a writer."""
        return JsonLinesWriter(str(self), partitions)

    async def target(self, world: World) -> FolderTarget:
        """Open the folder."""
        return FolderTarget(world, self._place(world), self.id, ".jsonl")


@dataclass(eq=False)
class ParquetFolder(_Folder):
    """
    Part files of Parquet in *folder*. See the module's header.

    Args:
        schema: A ``pyarrow.Schema``. None: see the header.

        type: The type of a value, where it is known.
    """

    schema: Any = None
    type: Any = None
    kind = "parquet"
    _kept: Any = field(default=None, init=False, repr=False)
    """The schema of the folder's parts; None: it has none yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parquet.arrow().array([1])  # the first one makes pyarrow look for pandas: a second, best not in the event loop
        if self.schema is None:
            self.schema = parquet.schema_of_type(self.type)

    async def partitions(self, world: World) -> int:
        """Make the folder when it is not there; refuse one whose parts have another schema."""
        count = await super().partitions(world)
        disk, path = world.ports.disk, self._schema_file(world)
        data = await world.ports.threads.run(f"part_files/{self.folder}", read_file, disk, path)
        self._kept = None if data is None else parquet.decode_schema(data)
        if self._kept is not None and self.schema is not None and not self._kept.equals(self.schema):
            raise PipelineError(
                f"{self} has parts with the columns {_shown(self._kept)}, and is to get {_shown(self.schema)}. The "
                "parts of a folder have one schema: write to another folder."
            )
        return count

    def writer(self, partitions: int) -> parquet.ParquetWriter:
        """Return a writer."""
        return parquet.ParquetWriter(str(self), partitions, self._kept if self._kept is not None else self.schema)

    async def target(self, world: World) -> FolderTarget:
        """Open the folder."""

        def encode(data: bytes) -> bytes:
            part, schema = parquet.parquet_of(data)
            if self._kept is None:  # durable before the first part: who starts again must not infer another one
                replace_file(world.ports.disk, self._schema_file(world), parquet.encode_schema(schema))
                self._kept = schema
            return part

        return FolderTarget(world, self._place(world), self.id, ".parquet", encode)

    def _schema_file(self, world: World) -> Path:
        return self._place(world) / f".{self.id}.schema"


def _shown(schema: Any) -> str:
    return ", ".join(f"{column.name}: {column.type}" for column in schema)
