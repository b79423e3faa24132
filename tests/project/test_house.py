"""The way of a merge through the rooms, as it is walked, from the command to the written tensor."""

import ast
import collections
import sys
import threading
from pathlib import Path

from click.testing import CliRunner

import mlflow_breadcrumbs
from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import writing

PACKAGE = Path(mlflow_breadcrumbs.__file__).parent
MOST = 12


def walked(arguments, until):
    """The rooms whose functions are called before `until` is, in the order of the first call."""
    rooms, arrived = {}, threading.Event()

    def look(frame, event, _):
        if event != "call" or arrived.is_set():
            return
        if frame.f_code is until.__code__:
            arrived.set()
        path = Path(frame.f_code.co_filename)
        if frame.f_code.co_name != "<module>" and PACKAGE in path.parents:
            rooms[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] = None

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        result = CliRunner().invoke(cli.main, arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert result.exit_code == 0, result.output
    assert arrived.is_set()
    return list(rooms)


def test_a_merge_enters_few_rooms_before_its_first_tensor_is_written(zoo):
    sources = [part for uri in zoo.sources for part in ("--source", uri)]
    arguments = ["merge", "--base", zoo.base, *sources, "--registered-model", "merged"]
    arguments += ["--tasks", zoo.tasks, "--device", "cpu", "--backend", "reference"]
    rooms = walked(arguments, writing.CheckpointWriter.write)
    assert rooms[0] in ("cli", "commands")
    assert len(rooms) <= MOST, rooms


def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def test_a_class_name_occurs_once():
    names = collections.Counter(
        node.name
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_import_of_ours_needs_an_alias():
    renamed = [
        f"{path.relative_to(PACKAGE)}: {alias.name} as {alias.asname}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name)
        for alias in node.names
        if alias.asname not in (None, alias.name)
    ]
    assert renamed == []


def test_a_callback_that_shows_progress_is_called_show():
    others = [
        f"{path.relative_to(PACKAGE)}:{argument.lineno}: {argument.arg}"
        for path, tree in trees().items()
        for argument in ast.walk(tree)
        if isinstance(argument, ast.arg)
        and argument.annotation is not None
        and "progress.Progress" in ast.unparse(argument.annotation)
        and argument.arg != "show"
    ]
    assert others == []
