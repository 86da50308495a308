"""Imports go one way between the rooms of the package, no two modules need each other, and what is private stays so.

Every import counts, also one inside a function or under `if TYPE_CHECKING:`: both say that a file needs another one.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lora_cls"
ROOMS = (
    "errors", "choices", "files", "machine", "execution", "yaml_text", "recipe", "reference", "evaluation", "data",
    "text", "runs", "modeling", "training", "search", "report", "commands", "serving", "terminal", "cli", "__main__",
)  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
NO_TORCH = (
    "errors", "choices", "files", "machine", "yaml_text", "recipe", "reference", "evaluation", "data", "runs", "search",
    "report", "terminal",
)  # fmt: skip
FILES = {".".join(("lora_cls", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in MODULES}


def imported(file):
    """(module, name or None, line) of every import of a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from ((node.module, alias.name, node.lineno) for alias in node.names)


def needed(file):
    """Modules of the package that a file imports; of a package that re-exports a name, the module it comes from."""
    for module, name, _ in imported(file):
        if module.startswith("lora_cls"):
            yield origin(module, name)


def origin(module, name):
    """The module in which `from module import name` ends."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    package = FILES.get(f"{module}.__init__")
    if package is not None and module != "lora_cls":
        for inner, exported, _ in imported(package):
            if exported == name:
                return origin(inner, name)
    return module


def room(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_room():
    """A new module must be given its place in the order."""
    assert {room(file) for file in MODULES} - {"__init__", "sample"} == set(ROOMS)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    """A module imports from its own room and from rooms before it, so that each can be read on its own."""
    if room(file) == "__init__":  # the public names, imported on first use
        return
    allowed = ROOMS[: ROOMS.index(room(file)) + 1]
    wrong = [
        f"{file.name}:{line} imports {module}.{name}"
        for module, name, line in imported(file)
        if module.startswith("lora_cls") and f"{module}.{name}".split(".")[1] not in (*allowed, "__version__")
    ]
    assert not wrong


@pytest.mark.parametrize("name", NO_TORCH)
def test_rooms_without_torch(name):
    """Data, metrics, run folders and tuning work where torch is slow to import or absent."""
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {module}"
        for file in MODULES
        if room(file) == name
        for module, _, line in imported(file)
        if module.split(".")[0] in ("torch", "transformers", "accelerate", "bitsandbytes")
        or module.startswith("lora_cls.modeling")
    ]
    assert not wrong


def circles(graph):
    """Sets of modules that need each other, directly or through others (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            circle = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(circle) > 1 or name in graph[name]:
                found.append(sorted(circle))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_circles_are_found():
    """The search itself: two circles, one of them of a module with itself."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}, "e": {"a"}}
    assert sorted(circles(graph)) == [["a", "b", "c"], ["d"]]


def test_no_import_circle():
    """No two modules need each other, wherever in them the import stands."""
    graph = {
        name: {other for other in needed(file) if other in FILES and other != name}
        for name, file in FILES.items()
        if not name.endswith("__init__")
    }
    graph = {name: {other for other in others if other in graph} for name, others in graph.items()}
    assert not circles(graph)


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_names_stay_in_their_file(file):
    """Nothing that begins with an underscore is taken from another file of the package: not imported, not called."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wrong = [
        f"{file.name}:{line} imports {module}.{name}"
        for module, name, line in imported(file)
        if module.startswith("lora_cls") and any(map(is_private, f"{module}.{name}".split(".")))
    ]
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and hasattr(node.target, "id")}
    others = {name for other in MODULES if other != file for name in private_members(other)}
    wrong += [
        f"{file.name}:{node.lineno} uses .{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own and node.attr in others
    ]
    assert not wrong


def private_members(file):
    """Private methods and attributes that the classes of a file define."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef) and is_private(inner.name):
                    yield inner.name
                elif (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and getattr(inner.value, "id", None) == "self"
                    and is_private(inner.attr)
                ):
                    yield inner.attr
