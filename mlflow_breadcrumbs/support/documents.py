"""YAML documents, read in one way: a fault is told with its line, no key may be given twice."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mlflow_breadcrumbs import errors


@dataclasses.dataclass(frozen=True)
class Document:
    """What a document says, and where in its text it says so."""

    content: Any
    root: yaml.Node | None
    """The same with the place of every part; `None` for an empty document."""


def read(path: str | Path, origin: str, error: type[errors.BreadcrumbsError]) -> Document:
    """Read a YAML (or JSON) file.

    Args:
        path: of the file.
        origin: how messages name it.
        error: what is raised.

    Raises:
        BreadcrumbsError: of the kind given: it can't be read, is not YAML, or gives a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as cause:
        raise error(f"{origin} can't be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{origin} is not text in UTF-8: {cause}") from cause
    return parse(text, origin, error)


def parse(text: str, origin: str, error: type[errors.BreadcrumbsError]) -> Document:
    """Read YAML (or JSON) from a text; see `read`."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        content = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as cause:
        raise error(f"{origin} is not YAML: {' '.join(str(cause).split())}") from cause
    finally:
        loader.dispose()
    twice = [f"line {key.start_mark.line + 1}: {key.value} is given twice" for key in _twice(root)]
    if twice:
        raise error(f"{origin} is refused:\n  " + "\n  ".join(twice))
    return Document(content, root)


def _twice(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """The keys that a mapping has already; YAML would take the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _twice(entry)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _twice(value)
