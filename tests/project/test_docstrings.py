"""Each room's first lines are its map: every module that they name exists, none is left out."""

import ast
import re
from pathlib import Path

import pytest

import mlflow_breadcrumbs

PACKAGE = Path(mlflow_breadcrumbs.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
WORDS = {
    *("image", "task", "label", "probability", "probabilities", "breadcrumbs"),  # the flavor's
    *("slsa", "verify"),  # a format that has no module; a command
}
"""What stands between backticks in the first lines of a room and is neither module nor name."""


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def called(path: Path) -> str:
    return path.parent.name if path.name == "__init__.py" else path.stem


def within(room: Path) -> set[str]:
    """The modules and rooms that lie in a room."""
    found = {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}
    return found | {path.parent.name for path in room.glob("*/__init__.py")}


def names(path: Path) -> set[str]:
    """What a module has at its top level; of a room, its modules too."""
    found: set[str] = within(path.parent) if path.name == "__init__.py" else set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def listed(text: str) -> set[str]:
    """The lower-case words between backticks, and what stands in a table's first column."""
    column = re.findall(r"^([a-z_]+)  +\S", text, re.MULTILINE)
    return {*re.findall(r"`([a-z_]+)`", text), *column}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_lists_its_modules_and_no_others(room):
    said = listed(docstring(room / "__init__.py"))
    known = within(room) | within(room.parent) | names(room / "__init__.py") | WORDS
    if room == PACKAGE:
        known = {called(path) for path in MODULES} | WORDS
    else:
        assert within(room) - said <= unsaid(room)
    assert said <= known | {called(path) for path in ROOMS}


def unsaid(room: Path) -> set[str]:
    """Modules that need no line: the ledger's revisions are numbered, not named."""
    return {name for name in within(room) if re.fullmatch(r"r\d{4}_.*", name)}


def test_what_docstrings_say_of_other_modules_is_there():
    """Of `module.name`, where the first part is a module of the package, the second is in it."""
    by_name: dict[str, set[str]] = {}
    for path in MODULES:
        by_name.setdefault(called(path), set()).update(names(path))
    gone = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for module, name, ending in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)([^`]*)`", text):
            if module in by_name and not ending.startswith(".") and name not in by_name[module]:
                gone.append(f"{path.relative_to(PACKAGE)}: {module}.{name}")
    files = ("json", "yaml", "png", "csv", "py", "html", "pt")
    assert [line for line in gone if line.rpartition(".")[2] not in files] == []
