"""The rules about imports and code, as functions from a module to what is wrong with it: pure, so that they are tested.

    (S1) Inside streamactors/ the alphabet is the order of dependency: a package imports itself and those before it.
    (S2) Nothing inside streamactors/ imports from its root, which re-exports what is below everything.
    (S3) core/ knows no event loop, engine/ knows no disk.
    (S4) A connector imports streamactors.core, and never another connector; the built-in log also streamactors.durable.
    (S5) The root only re-exports, and says all of what it exports.
    (S6) A file has at most 500 lines, a function at most 60.
    (S7) Nothing stored or sent can hold code: no pickle and its kin, no eval, no exec.
    (S8) What is public has a docstring; a method may leave it to the contract that it implements.

An import counts wherever it stands: in a function, under TYPE_CHECKING, relative, or by import_module.
"""

import ast
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from tests.style.sources import Module

FILE_LINES_MAX = 500  # two sittings of careful reading
FUNCTION_LINES_MAX = 60  # one screen
CODE_IN_DATA = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
BUILT_IN_LOG = {"log", "topic"}  # what the name of a file or folder of connectors/ begins with: topic, log_ingest
Function = ast.FunctionDef | ast.AsyncFunctionDef


def broken_import_direction(module: Module) -> Iterator[str]:
    """(S1), (S2), (S3)."""
    own = module.place[1] if len(module.place) > 1 else None
    if own == "__main__":
        own = "ops"  # `python -m streamactors` is the command line
    for name in module.imports() if own is not None else ():
        match own, name:
            case _, ("streamactors",):
                yield f"{module} imports the root package, which re-exports everything; import from the module itself"
            case _, ("streamactors", package, *_) if (
                not (module.root / "streamactors" / package).exists()
                and not (module.root / "streamactors" / f"{package}.py").exists()
            ):
                yield f"{module} takes {package} from the root package; import it from the module that defines it"
            case _, ("streamactors", package, *_) if package > own:
                yield f"{module} imports {'.'.join(name)}: {package}/ comes after {own}/ in the order of dependency"
            case "core", ("asyncio" | "uvloop", *_):
                yield f"{module} imports {name[0]}: core/ holds values and contracts and knows no event loop"
            case "engine", ("streamactors", "durable", *_) | ("lmdb" | "aiofiles", *_):
                yield f"{module} imports {'.'.join(name)}: engine/ knows no disk"


def broken_connector_import(module: Module) -> Iterator[str]:
    """(S4)."""
    own = module.place[1] if len(module.place) > 1 else ""
    allowed = {"core", "durable"} if own.split("_")[0] in BUILT_IN_LOG else {"core"}
    for name in module.imports():
        match name:
            case ("streamactors",):
                yield f"{module} imports the root package; a connector imports streamactors.core"
            case ("streamactors", package, *_) if package not in allowed:
                yield f"{module} imports {'.'.join(name)}; a connector imports only {' and '.join(sorted(allowed))}"
            case ("connectors", other, *_) if other != own:
                yield f"{module} imports connectors.{other}: a connector never imports another connector"


def broken_root(module: Module) -> Iterator[str]:
    """(S5). Imports under TYPE_CHECKING count: names may be imported when they are first used, by __getattr__."""
    imported: set[str] = set()
    exported: set[str] = set()
    statements = list(module.tree.body)
    for node in statements:
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.ImportFrom(module="__future__" | "typing" | "importlib"):
                pass
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                imported |= {alias.asname or alias.name for alias in aliases}
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=[]):
                statements += body
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                exported = set(ast.literal_eval(value))
            case ast.Assign(targets=[ast.Name(id="__version__" | "_HOMES")]):
                pass
            case ast.FunctionDef(name="__getattr__" | "__dir__"):
                pass
            case _:
                yield f"{module}:{node.lineno} does something; the root only re-exports"
    public = {name for name in imported if not name.startswith("_")}
    if public ^ (exported - {"__version__"}):
        yield f"{module}: imports and __all__ differ by {sorted(public ^ (exported - {'__version__'}))}"


def broken_size(module: Module) -> Iterator[str]:
    """(S6)."""
    lines = len(module.text.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"{module} has {lines} lines, more than {FILE_LINES_MAX}: which part of it has a name of its own?"
    for node in ast.walk(module.tree):
        if isinstance(node, Function) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{module}:{node.lineno} {node.name} has {length} lines, more than {FUNCTION_LINES_MAX}"


def broken_code_in_data(module: Module) -> Iterator[str]:
    """(S7)."""
    for name in module.imports():
        if name[0] in CODE_IN_DATA:
            yield f"{module} imports {name[0]}: what it loads can run code"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id in {"eval", "exec"}:
            yield f"{module}:{node.lineno} uses {node.id}"


def contracts(modules: list[Module]) -> set[str]:
    """The names of all documented methods: what implements one of them need not repeat the text."""
    return {
        function.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, Function) and ast.get_docstring(function)
    }


def broken_docstring(module: Module, documented: AbstractSet[str]) -> Iterator[str]:
    """(S8)."""
    if not ast.get_docstring(module.tree):
        yield f"{module} does not say what it is for"
    for node in _public(module.tree.body):
        if not ast.get_docstring(node):
            yield f"{module}:{node.lineno} {node.name} is public and has no docstring"
        if isinstance(node, ast.ClassDef):
            for method in _public(node.body):
                if not ast.get_docstring(method) and method.name not in documented and not _is_repeated(method):
                    yield f"{module}:{method.lineno} {node.name}.{method.name} is public and has no docstring"


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | Function]:
    for node in body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node


def _is_repeated(node: ast.ClassDef | Function) -> bool:
    """An overload, or the setter of a documented property."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    return bool(decorators & {"overload", "typing.overload", f"{node.name}.setter", f"{node.name}.deleter"})
