"""Where a stream may end: views, topics, tables, files, and any sink. Plain data like the rest of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamactors.core.connectors import Sink
from streamactors.flow.dead_letters import OnError
from streamactors.flow.selectors import Selector

from .nodes import Graph, Node, Shape, caller, error_policy, refuse

if TYPE_CHECKING:
    from .streams import KeyedStream


class StreamEnds:
    """The ``to...`` methods of a stream."""

    graph: Graph
    node: Node
    output: str
    shape: Shape

    if TYPE_CHECKING:  # a stream's own

        def key_by(self, selector: Selector, *, name: str | None = None) -> KeyedStream[Any]: ...

        def _require_append(self, what: str) -> None: ...

    def to_view(self, name: str, *, key: Selector = None) -> None:
        """
        Keep the newest value of each key in the view *name*, to be read while the job runs.

        The view's key is the stream's key, ``[key, window start]`` for results of windows, or what *key* selects.
        """
        stream: StreamEnds = self
        if key is not None:
            self._require_append("a view with a key of its own")
            stream = self.key_by(key)
        self.graph.add_view(name, stream.node, stream.output, stream.shape)

    def to_topic(
        self,
        name: str,
        *,
        partitions: int | None = None,
        encoding: str = "json",
        on_error: OnError | str | None = None,
    ) -> None:
        """
        Append each value to the log's topic *name*, exactly once, with the stream's key as the record's key.

        Args:
            name:
                The topic; made with *partitions* (1) when it is not there.

            partitions:
                A record's key decides which one. None: as the topic has.

            encoding:
                ``json`` or ``msgpack``; bytes are written as they are.

            on_error:
                What happens to a value that can't be encoded; see ``on_error``.
        """
        from connectors.topic import TopicSink  # late: connectors import this package's core

        self.to(TopicSink(name, partitions, encoding), on_error=on_error)

    def to_sqlite(
        self,
        path: Path | str,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        upserts: bool | None = None,
        key: str | Sequence[str] = "key",
        on_error: OnError | str | None = None,
    ) -> None:
        """
        Write the stream into a table of the SQLite file *path*, exactly once; see ``connectors.sqlite``.

        Results, and what has a window, become a row for each key (and window), which later ones replace; other streams
        a row for each value. *upserts* says otherwise, *columns* which fields, *key* the columns of the key.
        """
        from connectors.sqlite import SqliteTable  # late: see to_topic

        upserts = self.shape.upsert or self.shape.windowed if upserts is None else upserts
        if upserts and self.shape.keyed_by is None:
            raise refuse(f"table {table}", caller(), "this stream has no key to keep rows by.", "Call key_by first.")
        self.to(SqliteTable(path, table, columns, upserts, key, type=self.shape.type), on_error=on_error)

    def to_json_lines(self, folder: Path | str, *, partitions: int = 1, on_error: OnError | str | None = None) -> None:
        """Write each value as a line into part files in *folder*, exactly once; see ``connectors.part_files``."""
        from connectors.part_files import JsonLinesFolder  # late: see to_topic

        self.to(JsonLinesFolder(folder, partitions), on_error=on_error)

    def to_parquet(
        self, folder: Path | str, *, partitions: int = 1, schema: Any = None, on_error: OnError | str | None = None
    ) -> None:
        """Write the values' fields as columns of Parquet part files in *folder*; see ``connectors.part_files``."""
        from connectors.part_files import ParquetFolder  # late: see to_topic

        self.to(ParquetFolder(folder, partitions, schema=schema, type=self.shape.type), on_error=on_error)

    def to(self, sink: Sink, *, on_error: OnError | str | None = None) -> None:
        """Write each value to *sink*, exactly once; corrections only to one that takes upserts."""
        if not sink.upserts:
            self._require_append(f"sink {sink.id}")
        node = self.graph.add_sink(sink, self.node, self.output, self.shape)
        if on_error is not None:
            node.on_error = error_policy(on_error)
