"""Which task file was used when a version was made, for those who name none."""

import re
from pathlib import Path

from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.registry import tag_keys, versions

PARAMETER = "import.tasks"
"""Of the run of an import."""

_IN_MLFLOW = re.compile(r"(runs|models|mlflow-artifacts):/")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def located(task_file: str | None) -> str | None:
    """A task file as it is recorded: a path on this machine from its root, a URI as it is."""
    if task_file is None or _URI.match(task_file):
        return task_file
    return str(Path(task_file).absolute())


def of(uri: str) -> tuple[str, str] | None:
    """The task file that a version recorded, or else its base, and the URI of which of the two.

    A merge has it in its lineage, an import in its run. What somebody else recorded is taken only
    where it is a file here or one in MLflow; the task file itself is then read as any other.

    Args:
        uri: of the version.

    Raises:
        RegistryError: there is no such version.
    """
    resolved = versions.resolve(uri)
    if (found := _usable(_recorded(resolved))) is not None:
        return found, resolved.uri
    base = resolved.tags.get(tag_keys.BASE)
    return of(base) if base else None


def _recorded(resolved: versions.ResolvedVersion) -> str | None:
    stated = contents.lineage_of(resolved) if tag_keys.LINEAGE_DIGEST in resolved.tags else None
    if isinstance(stated, statement.Statement):
        return stated.task_file
    run = contents.run_of(resolved)
    return None if run is None else run.data.params.get(PARAMETER)


def _usable(task_file: str | None) -> str | None:
    if task_file is None:
        return None
    return task_file if _IN_MLFLOW.match(task_file) or Path(task_file).is_file() else None
