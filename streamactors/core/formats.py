"""What is said of a file that a later release has written. The policy is in docs/upgrades.md."""

from __future__ import annotations

RULE = (
    "A release reads what it and all before it have written, never what a later one has: use the release that wrote "
    "it, or a later one."
)


def newer(what: str, found: object, known: int) -> str:
    """Return the message about *what*, whose format version *found* is above the newest that is *known* here."""
    return f"{what} has format version {found}, this release reads up to {known}. {RULE}"
