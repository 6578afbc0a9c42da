"""Finding the pipeline in a user's file: ``FILE.py`` or ``FILE.py:NAME``.

The file is run once, as Python runs a script: its folder is the first place for imports, ``sys.argv`` has its name and
the arguments behind ``--``. Only ``__name__`` differs, so that what stands under ``if __name__ == "__main__"`` is not
run. What goes wrong in it is shown as Python would show it, without our frames. A file with relative imports is
imported as the part of its package that it is.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from streamactors.core.errors import StreamActorsError, UsageError
from streamactors.graph.pipeline import Pipeline
from streamactors.job.settings import Settings

from .failures import user_frames

MODULE_NAME = "streamactors_pipeline_file"
"""What the user's file is called as a module: nothing that it could mean to import itself."""


def load(target: str, arguments: Sequence[str], *, job: str | None = None) -> Pipeline:
    """
    Return the pipeline that *target* names; without a NAME, the only one of the file, or the only one named *job*.

    Raises:
        UsageError: there is no such file or name, or the file fails; then with its traceback.
        PipelineError, SystemExit: as the file raised it.
    """
    path, name = _split(target)
    module = _run_file(path, arguments)
    if name is not None:
        return _named(module, path, name)
    found: dict[int, tuple[str, Pipeline]] = {}
    for key, value in vars(module).items():
        if isinstance(value, Pipeline):
            found.setdefault(id(value), (key, value))
    if job is not None:
        found = {one: named for one, named in found.items() if named[1].name == job}
        if not found:
            raise UsageError(
                f"{path} has no Pipeline {job} at module level. Name the file that has it, and a function that returns "
                "it where it is in none: --file FILE.py:NAME."
            )
    if not found:
        raise UsageError(
            f"{path} has no Pipeline at module level. Assign one to a name, or name a function that returns one: "
            f"{path}:NAME."
        )
    if len(found) > 1:
        names = ", ".join(f"{path}:{key}" for key, _ in found.values())
        raise UsageError(f"{path} has {len(found)} pipelines. Say which: {names}.")
    return next(iter(found.values()))[1]


def file_settings() -> Settings:
    """Return the ``settings`` that the file which was loaded last has at module level; the defaults without any."""
    found = getattr(sys.modules.get(MODULE_NAME), "settings", None)
    return found if isinstance(found, Settings) else Settings()


def _split(target: str) -> tuple[Path, str | None]:
    path, colon, name = target.rpartition(":")
    if not colon or Path(target).is_file():
        path, name = target, ""
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}. Give FILE.py or FILE.py:NAME.")
    return Path(path), name or None


def _run_file(path: Path, arguments: Sequence[str]) -> ModuleType:
    spec = spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name has to end in .py.")
    module = module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # where annotations of its classes are resolved
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv = [str(path), *arguments]
    try:
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            root = _package_root(path)
            if root is None or "relative import" not in str(error):
                raise
            module = _import_as_part(root, path)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            raise
        raise UsageError(str(end.code)) from end
    except StreamActorsError:
        raise
    except Exception as error:
        raise _failed(path, error) from error
    return module


def _package_root(path: Path) -> Path | None:
    """Return the folder from which the package that *path* is in is imported; None when it is in none."""
    root = path.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    return None if root == path.resolve().parent else root


def _import_as_part(root: Path, path: Path) -> ModuleType:
    """Import a file that imports from beside itself, which Python allows only inside a package."""
    sys.path.insert(1, str(root))
    name = ".".join(path.resolve().relative_to(root).with_suffix("").parts)
    module = sys.modules[MODULE_NAME] = import_module(name)
    return module


def _named(module: ModuleType, path: Path, name: str) -> Pipeline:
    value = getattr(module, name, None)
    if not isinstance(value, Pipeline) and callable(value):
        try:
            value = value()
        except StreamActorsError:
            raise
        except Exception as error:
            raise _failed(path, error) from error
    if not isinstance(value, Pipeline):
        raise UsageError(f"{path}:{name} is neither a Pipeline nor a function that returns one, but {value!r}.")
    return value


def _failed(path: Path, error: Exception) -> UsageError:
    last = "".join(traceback.format_exception_only(error)).rstrip()
    return UsageError(f"{path} failed before there was a pipeline.\n{user_frames(error.__traceback__)}{last}")
