"""Settings from outside: the flags and the variables that stand for fields of ``Settings``, in one table.

Flags of ``streamactors run``, variables, and the table in docs/settings.md are all made of OPTIONS. What applies is the
first of:

    a flag              --checkpoint-every 1s
    a variable          STREAMACTORS_CHECKPOINT_EVERY=1s       an empty one counts as not set
    the program         ``settings = Settings(...)`` in the pipeline's file, or what ``run`` is given
    the default

A program that embeds the library decides itself whether variables count: ``Settings.from_environment()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

from streamactors.core.connectors import Guarantee
from streamactors.core.errors import UsageError
from streamactors.core.sizes import size_bytes
from streamactors.core.times import duration_ms, shown
from streamactors.engine.restarts import Scope

from .settings import Settings

PREFIX = "STREAMACTORS_"

DATA_VARIABLE = f"{PREFIX}DATA"
"""What stands for ``--data`` of each command."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written as text."""

    metavar: str
    unit: str
    """What the field counts."""

    parse: Callable[[str], Any]
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """A field of ``Settings``, or of its restart policy, that can be set from outside."""

    path: str
    """The field, such as ``restarts.window``."""

    flag: str
    kind: Kind
    meaning: str

    @property
    def variable(self) -> str:
        """The variable that stands for it."""
        return PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def parameter(self) -> str:
        """The flag as a name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> str:
        """The default, as one would write it."""
        return self.kind.write(self.of(Settings()))

    def of(self, settings: Settings) -> Any:
        """Return the field's value."""
        value: Any = settings
        for name in self.path.split("."):
            value = getattr(value, name)
        return value

    def apply(self, settings: Settings, text: str, origin: str) -> Settings:
        """Return *settings* with the field as *text* says; *origin* names who says it."""
        *outer, name = self.path.split(".")
        try:
            value = self.kind.parse(text.strip())
            if outer:
                return replace(settings, **{outer[0]: replace(getattr(settings, outer[0]), **{name: value})})
            return replace(settings, **{name: value})
        except (ValueError, UsageError) as error:
            raise UsageError(f"{origin}: {error}") from error


def _milliseconds(text: str) -> int:
    return 0 if text in {"0", "off"} else duration_ms(text)


def _seconds(text: str) -> float:
    return _milliseconds(text) / 1_000


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is not a whole number. Write digits alone, such as '5'.")
    return int(text)


def _quota(text: str) -> int | None:
    if text == "none":
        return None
    size = size_bytes(text)
    if size < 1:
        raise ValueError(f"{text!r} leaves no room. Give a size, or 'none'.")
    return size


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}. Give one of them.")
        return text

    return parse


def _write_quota(value: int | None) -> str:
    return "none" if value is None else f"{value}B"


_GUARANTEES = tuple(guarantee.value for guarantee in Guarantee)
_SCOPES = get_args(Scope)
_MS = Kind("TIME", "ms", _milliseconds, lambda ms: shown(ms) if ms else "0")
_SECONDS = Kind("TIME", "s", _seconds, lambda seconds: shown(round(seconds * 1_000)) if seconds else "0")
_NUMBER = Kind("N", "number", _count)
_GUARANTEE = Kind(
    "NAME",
    "name",
    lambda text: Guarantee(_choice(*_GUARANTEES)(text)),
    lambda guarantee: str(guarantee.value),
    _GUARANTEES,
)
_SCOPE = Kind("NAME", "name", _choice(*_SCOPES), choices=_SCOPES)
_SIZE = Kind("SIZE", "bytes", _quota, _write_quota)

OPTIONS = (
    Option(
        "checkpoint_every_ms",
        "--checkpoint-every",
        _MS,
        "Time between checkpoints. Shorter: views and sinks follow sooner. Longer: fewer writes.",
    ),
    Option("guarantee", "--guarantee", _GUARANTEE, "What a crash may do to the result."),
    Option(
        "quota_bytes", "--quota", _SIZE, "What the job's state may take on disk; at it, the job waits. none: no bound."
    ),
    Option(
        "restarts.scope", "--restart", _SCOPE, "What a failure takes back to its checkpoint: its region, all, or none."
    ),
    Option("restarts.restarts_max", "--restarts-max", _NUMBER, "Restarts within the window before the job gives up."),
    Option("restarts.window", "--restarts-window", _SECONDS, "How far back restarts count."),
    Option(
        "restarts.backoff_first",
        "--backoff-first",
        _SECONDS,
        "The longest wait before the first restart; doubles with each one in the window.",
    ),
    Option("restarts.backoff_max", "--backoff-max", _SECONDS, "No wait before a restart is longer."),
    Option(
        "watchdog_ms",
        "--watchdog",
        _MS,
        "A function that keeps the event loop for so long is named in the log. 0: nobody looks.",
    ),
    Option(
        "await_ms",
        "--await",
        _MS,
        "A call of an async function that has not returned for so long is named in the log. 0: never.",
    ),
    Option(
        "batch_records", "--batch-records", _NUMBER, "Records in a batch, at most. The result does not depend on it."
    ),
)

FROM_INSIDE_ONLY = {
    "version": "which code it is, so it belongs to the command or program that runs it",
    "bound": "a property of one run, not of a job's surroundings: `--until-end`, `--finish`",
    "from_savepoint": "a property of one start: `--from-savepoint`",
    "from_time": "a property of one start: `replay --from`",
    "sinks": "what that start does to targets: `--sinks`",
    "fresh": "consent that is given once, when the code changes: `--fresh`",
    "dropped": "the same: `--drop`",
    "follow": "a journal, which is data: for programs that repeat a run",
    "sync": "for simulations: without it a power cut takes checkpoints",
}
"""Fields that no variable sets, and why."""


def paths() -> set[str]:
    """Return all fields of ``Settings``, those of its parts as ``part.field``."""
    found = set()
    for field in fields(Settings):
        value = getattr(Settings(), field.name)
        inner = {f"{field.name}.{part.name}" for part in fields(value)} if is_dataclass(value) else {field.name}
        found |= inner
    return found


def from_flags(settings: Settings, flags: Mapping[str, str | None]) -> Settings:
    """Return *settings* with what *flags* say, by ``Option.parameter``; None: not given."""
    for option in OPTIONS:
        text = flags.get(option.parameter)
        if text is not None:
            settings = option.apply(settings, text, f"{option.flag} {text}")
    return settings


def from_variables(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """Return *settings* with what *variables*, an environment, say."""
    for option in OPTIONS:
        text = variables.get(option.variable, "")
        if text.strip():
            settings = option.apply(settings, text, f"{option.variable}={text}")
    return settings


def misspelt(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables that are nearly one of ours: what somebody has set, and what he may have meant."""
    known = [option.variable for option in OPTIONS] + [DATA_VARIABLE]
    unknown = [name for name in variables if name.startswith(PREFIX) and name not in known]
    found = {name: get_close_matches(name, known, 1, 0.85) for name in sorted(unknown)}
    return {name: close[0] for name, close in found.items() if close}
