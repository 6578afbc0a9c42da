"""The hunt: find all points, and kill a process at each of them.

    1. two lives of each command without a kill list the points: the first in an empty folder, the second in a used one
    2. the sweep: one folder after the other; in each, life after life dies at the next point of the list that no
       process has died at. What the list does not hold (recovery's own calls) joins it when it is first reached
    3. points that were not reached in passing: a new folder for those that were first seen behind the same life, which
       is repeated there before
    4. at random: any point, any time that it is reached

Each folder ends with ``World.finish``, which compares everything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.crash.lives import Life, Plan, World
from tests.crash.processes import Server

Target = tuple[str, str]
"""(command, point)"""

LIVES_A_FOLDER = 14
TRIES = 6
"""New folders for a point that is not reached again: with several partitions, threads may take another order."""

RECORDS_FIRST, RECORDS_MORE = 240, 60


@dataclass(frozen=True, slots=True)
class Step:
    """One life: which command, and where it dies."""

    kind: str
    plan: Plan | None = None


@dataclass(repr=False)
class Hunt:
    """One hunt. See the module's header."""

    server: Server
    folder: Path
    partitions: int
    random: Random
    seen: dict[Target, list[Step]] = field(default_factory=dict)
    """Each point that was ever reached, and the lives in the folder before the first one that did."""

    most: Counter[Target] = field(default_factory=Counter)
    """How often a life has reached a point."""

    kills: Counter[Target] = field(default_factory=Counter)
    folders: int = 0

    def __repr__(self) -> str:
        return (
            f"{self.kills.total()} kills at {len(self.kills)} of {len(self.seen)} points in {self.folders} folders, "
            f"{self.partitions} partition(s)"
        )

    def list_points(self) -> None:
        """Step 1."""
        self._folder([Step("append"), Step("run"), Step("append"), Step("run")])

    def sweep(self, command: str) -> None:
        """Steps 2 and 3, for the points of one command."""
        tried: set[Target] = set()
        while ahead := [target for target in self.unkilled(command) if target not in tried]:
            tried.update(ahead[:LIVES_A_FOLDER])
            steps = [Step(command, Plan(label)) for _, label in ahead[:LIVES_A_FOLDER]]
            self._folder(steps if command == "append" else [Step("append"), *steps])
        tries: Counter[Target] = Counter()
        while missed := [target for target in self.unkilled(command) if tries[target] < TRIES]:
            first = missed[0]
            before = self._shortened(first)
            alike = [target for target in missed if self._shortened(target) == before]
            if not tries[first]:
                self._folder([*before, *(Step(command, Plan(label)) for _, label in alike[:LIVES_A_FOLDER])])
            else:
                self._folder([*self.seen[first], Step(command, Plan(first[1]))])
            tries[first] += 1

    def unkilled(self, command: str) -> list[Target]:
        """Return the points of a command at which no process has died yet."""
        return [target for target in self.seen if target[0] == command and target not in self.kills]

    def _shortened(self, target: Target) -> list[Step]:
        """Return the lives that probably matter for a point to be reached: the first append, and the last one."""
        before = self.seen[target]
        return [Step("append"), *before[-1:]] if target[0] == "run" and before[1:] else before[-1:]

    def at_random(self, kills: int) -> None:
        """Step 4: until there were so many more."""
        wanted = self.kills.total() + kills
        while self.kills.total() < wanted:
            targets = self.random.choices(list(self.seen), k=self.random.randint(1, LIVES_A_FOLDER))
            nths = [self.random.randint(1, self.most[target]) for target in targets]
            steps = [Step(kind, Plan(label, nth)) for (kind, label), nth in zip(targets, nths, strict=True)]
            self._folder([Step("append"), *steps])

    def _folder(self, steps: list[Step]) -> None:
        """Live through *steps* in a new folder, and compare."""
        self.folders += 1
        seed = self.random.getrandbits(32)
        world = World(self.server, self.folder / str(self.folders), self.partitions, Random(seed))
        done: list[Step] = []
        try:
            for step in steps:
                if step.kind == "run" and done and done[-1].kind == "run":
                    world.append(RECORDS_MORE)
                self._note(self._live(world, step, first=not done), done)
                done.append(step)
            world.finish()
        except AssertionError as error:
            lives = [*done, *steps[len(done) :][:1]]
            raise AssertionError(f"{error}\nin {world.data}, seed {seed}, the last of these lives: {lives}") from error
        self.kills.update(world.kills)

    def _live(self, world: World, step: Step, *, first: bool) -> Life:
        if step.kind == "append":
            return world.append(RECORDS_FIRST if first else RECORDS_MORE, step.plan)
        return world.run(step.plan)

    def _note(self, life: Life, before: list[Step]) -> None:
        for label, count in Counter(life.reached).items():
            target = (life.kind, label)
            self.seen.setdefault(target, list(before))
            self.most[target] = max(self.most[target], count)
