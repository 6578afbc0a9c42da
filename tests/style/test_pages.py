"""The pages keep their promises: links lead somewhere, commands stand where they are looked for, no machine shows."""

import re

import pytest

from tests.style.sources import ROOT, pages, texts

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MACHINE = re.compile(r"(?<![\w.\-])/(?:work|root|home|Users)/\w|[A-Z]:\\Users\\")


def linked(page):
    """Where the page's links lead inside the project."""
    targets = [target.partition("#")[0] for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))]
    return [target for target in targets if target and not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def test_relative_links_lead_to_a_file():
    broken = [(str(page), target) for page in pages() for target in linked(page) if not (page.parent / target).exists()]
    assert not broken


def test_no_file_names_a_path_of_some_machine():
    found = [(str(path), MACHINE.search(path.read_text(encoding="utf-8", errors="replace"))) for path in texts()]
    assert not [(path, match[0]) for path, match in found if match]


@pytest.mark.parametrize("marker", ["test-command", "quiz-command"])
def test_the_readme_gives_each_command_in_one_line(marker):
    """The checks run the block behind the marker, so that it can't drift from what they prove."""
    blocks = re.findall(
        rf"<!-- {marker} -->\n```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) == 1
