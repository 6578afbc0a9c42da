"""The Python in README.md and docs/ runs.

The blocks of one page run in order, in an empty folder, and share their names, so that a page reads as one story.
``await`` and ``async with`` may stand at the top level. A block that can't run says why, in a comment above it:

    <!-- no-run: needs a Kafka broker -->
"""

import ast
import asyncio
import inspect
import logging
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(?:^<!--[ ]*(?P<note>[^\n]*?)[ ]*-->\n+)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NO_RUN = re.compile(r"no-run\b:?\s*(?P<reason>.*)")


def blocks(text: str) -> list[tuple[int, str]]:
    """Return (line, code) of each block that is to run."""
    found = []
    for match in BLOCK.finditer(text):
        skipped = NO_RUN.match(match["note"] or "")
        line = text.count("\n", 0, match.start("code")) + 1
        if skipped is None:
            found.append((line, match["code"]))
        else:
            assert skipped["reason"], f"line {line}: no-run gives no reason"
    return found


async def run_blocks(name: str, found: list[tuple[int, str]]) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in found:
        # Empty lines in front: a traceback then shows the line of the page.
        unit = compile("\n" * (line - 1) + code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if unit.co_flags & inspect.CO_COROUTINE:
            await eval(unit, names)
        else:
            exec(unit, names)
    return names


@pytest.fixture
def levels():
    """A page may set levels of the log; the next test's loggers have none."""
    yield
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("streamactors") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, levels):
    monkeypatch.chdir(tmp_path)
    asyncio.run(run_blocks(str(page), blocks(page.read_text(encoding="utf-8"))))


def test_blocks_share_their_names_may_await_and_skip_only_with_a_reason():
    page = "```python\nx = 1\n```\n<!-- no-run: a reason -->\n```python\nx = 0 / 0\n```\n"
    page += "```python\nimport asyncio\nawait asyncio.sleep(0)\ny = x + 1\n```\n"
    assert [line for line, _ in blocks(page)] == [2, 9]
    assert asyncio.run(run_blocks("page", blocks(page)))["y"] == 2

    with pytest.raises(AssertionError, match="no reason"):
        blocks("<!-- no-run -->\n```python\n```\n")


def test_a_failing_block_shows_the_line_of_its_page():
    with pytest.raises(ZeroDivisionError) as failure:
        asyncio.run(run_blocks("page", blocks("# Title\n\n```python\n1 / 0\n```\n")))
    assert failure.traceback[-1].lineno == 3  # counted from 0
