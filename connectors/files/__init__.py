"""Text and JSON-lines files as sources.

lines.py       files that are named: one partition each, offsets are byte positions
matching.py    files that match a pattern: one partition, and files that appear later belong to it
manifest.py    which bytes of which file are at which offset of that partition
"""

from pathlib import Path
from typing import Any

from streamactors.core.connectors import Source
from streamactors.core.errors import UsageError

from .lines import JsonLines, TextLines
from .matching import MatchingJsonLines, MatchingTextLines, is_pattern

__all__ = ["JsonLines", "MatchingJsonLines", "MatchingTextLines", "TextLines", "json_lines", "text_lines"]


def json_lines(path: Path | str, type: Any = None, *, id: str = "json") -> Source:  # noqa: A002 - the fields' names
    """Return the source of a file, or of all files that match a pattern."""
    return MatchingJsonLines(path, type, id=id) if is_pattern(path) else JsonLines(path, type, id=id)


def text_lines(*paths: Path | str, id: str = "text") -> Source:  # noqa: A002 - the field's name
    """Return the source of some files, or of all files that match one pattern."""
    if not any(map(is_pattern, paths)):
        return TextLines(*paths, id=id)
    if len(paths) > 1:
        raise UsageError(
            f"text_lines({', '.join(map(str, paths))}): a pattern stands alone. Give one pattern, or several files."
        )
    return MatchingTextLines(paths[0], id=id)
