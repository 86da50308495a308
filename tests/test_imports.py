"""Imports go one way between the rooms of the package, and the rooms without models stay without torch."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lora_cls"
ROOMS = (
    "errors", "files", "machine", "recipe", "reference", "evaluation", "data", "text", "runs", "modeling", "training",
    "report", "commands", "terminal", "cli",
)  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
NO_TORCH = ("errors", "files", "machine", "recipe", "reference", "evaluation", "data", "runs", "report")


def imported(file):
    """(module, line) of every import that runs, inside functions too; `if TYPE_CHECKING:` does not run."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield node.module, node.lineno
            if node.module == "lora_cls":
                yield from ((f"lora_cls.{alias.name}", node.lineno) for alias in node.names)


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
        f"{file.name}:{line} imports {name}"
        for name, line in imported(file)
        if name.startswith("lora_cls.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("name", NO_TORCH)
def test_rooms_without_torch(name):
    """Data, metrics, run folders and tuning work where torch is slow to import or absent."""
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {module}"
        for file in MODULES
        if room(file) == name
        for module, line in imported(file)
        if module.split(".")[0] in ("torch", "transformers", "accelerate", "bitsandbytes")
        or module.startswith("lora_cls.modeling")
    ]
    assert not wrong


def test_no_import_cycle():
    """Within a room, too, no two modules need each other to be imported (a factory may import inside its function)."""
    files = {".".join(("lora_cls", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in MODULES}
    # Packages themselves (`lora_cls.data`) only re-export, and are not among these names.
    graph = {
        name: {
            node.module
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom) and node.module in files
        }
        for name, file in files.items()
    }
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
