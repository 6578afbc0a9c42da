"""What the house rules read: the modules as syntax trees, and the project's pages."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Module:
    """A Python file of the repository, by its dotted name."""

    path: Path
    root: Path = ROOT

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def place(self) -> tuple[str, ...]:
        """``streamactors/core/batch.py`` is (streamactors, core, batch), a package is its folder's name."""
        parts = self.path.relative_to(self.root).with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts

    def __str__(self) -> str:
        return str(self.path.relative_to(self.root))

    def imports(self) -> Iterator[tuple[str, ...]]:
        """Every name that is imported, absolute, relative or by ``import_module``, as absolute parts."""
        package = self.place if self.path.name == "__init__.py" else self.place[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (tuple(alias.name.split(".")) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) - node.level + 1] if node.level else ()
                source = (*start, *(node.module.split(".") if node.module else ()))
                # Whether the last part is a module or a name in one does not matter: rules look at its first parts.
                yield from ((*source, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
                yield from (
                    tuple(argument.value.split("."))
                    for argument in node.args[:1]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                )


def _called(node: ast.Call) -> str:
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def modules(*folders: str) -> list[Module]:
    return [Module(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def pages() -> list[Path]:
    """README and the other pages for readers."""
    return sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")]
    )


def texts() -> list[Path]:
    """Every text file of the project."""
    folders = ("streamactors", "connectors", "tests", "examples", "benchmarks", "docs", ".ci")
    kinds = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".sh", ".yaml", ".yml", ".svg", ".service", ""}
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return sorted(
        path for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *found] if path.is_file() and path.suffix in kinds
    )
