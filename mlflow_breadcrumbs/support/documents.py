"""YAML documents, read in one way: a fault is told with its line, no key may be given twice.

What is read may be anybody's, so it is held against limits while it is read: a few bytes of YAML
can stand for billions of values, or take minutes to parse.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import intake, json_documents

BYTES = 1 << 20
"""Of a document; the 21,841 class names of ImageNet-21k are half of it."""
DEPTH = 40
"""Of lists and mappings inside one another."""
NODES = 50_000
"""Values and keys, those that an alias repeats counted again; they take two seconds to read."""
KEYS = 5_000
"""Of one mapping."""
NUMBER = 100
"""Characters of a number or a date."""

_FOREIGN = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML's constructors raise, besides their own, for `!!timestamp x` and its like."""


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
        BreadcrumbsError: of the kind given: it can't be read, is no regular file, is not YAML,
            gives a key twice, or is beyond a limit of this module.
    """
    return parse(intake.text(path, origin, error, BYTES), origin, error)


def parse(text: str, origin: str, error: type[errors.BreadcrumbsError]) -> Document:
    """Read YAML (or JSON) from a text; see `read`."""
    if len(text) > BYTES:
        raise error(f"{origin} is refused: it has {len(text):,} characters, {BYTES:,} is the most")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _check_aliases(root)
            content = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except _ExcessError as cause:
        raise error(f"{origin} is refused: {cause}") from cause
    except _FOREIGN as cause:
        raise error(f"{origin} is not YAML: {' '.join(str(cause).split())}") from cause
    twice = [f"line {key.start_mark.line + 1}: {key.value} is given twice" for key in _twice(root)]
    if twice:
        raise error(f"{origin} is refused:\n  " + "\n  ".join(twice))
    return Document(content, root)


class _ExcessError(Exception):
    """A document is beyond a limit; says where."""

    def __init__(self, node_or_event: Any, what: str) -> None:
        super().__init__(f"line {node_or_event.start_mark.line + 1}: {what}")


class _Loader(yaml.SafeLoader):
    """PyYAML's own, which gives up at a limit instead of going on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Take one value, and all that is in it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._nodes += 1
        if self._depth > DEPTH:
            raise _ExcessError(event, f"it is nested deeper than {DEPTH} levels")
        if self._nodes > NODES:
            raise _ExcessError(event, f"it has more than {NODES:,} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode) and len(node.value) > KEYS:
            raise _ExcessError(node, f"it has {len(node.value):,} keys, {KEYS:,} is the most")
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
        if isinstance(node, yaml.ScalarNode) and _is_too_long(node):
            raise _ExcessError(
                node, f"a number of {len(node.value):,} characters, at most {NUMBER}"
            )
        return node


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """An integer that every reader of JSON, into which it may be written, takes for the same."""
    value = int(loader.construct_yaml_int(node))
    if abs(value) > json_documents.LARGEST:
        raise _ExcessError(node, f"the integer {value} is beyond ±{json_documents.LARGEST}")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _check_text(node: yaml.ScalarNode) -> None:
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _ExcessError(node, f"{ascii(node.value)[:60]} is no Unicode text") from None


def _is_too_long(node: yaml.ScalarNode) -> bool:
    return not node.tag.endswith((":str", ":binary")) and len(node.value) > NUMBER


def _check_aliases(root: yaml.Node) -> None:
    """Refuse aliases that make a cycle, more values than may be, or too deep a nest."""
    known: dict[int, tuple[int, int]] = {}
    around: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """How many values it stands for, and how deeply they are nested."""
        if id(node) in around:
            raise _ExcessError(node, "it contains itself, through an alias")
        if id(node) not in known:
            around.add(id(node))
            size, depth = 1, 0
            for child in _children(node):
                own = measure(child)
                size, depth = size + own[0], max(depth, own[1])
            if size > NODES:
                raise _ExcessError(node, f"its aliases stand for more than {NODES:,} values")
            if depth >= DEPTH:
                raise _ExcessError(node, f"it is nested deeper than {DEPTH} levels")
            around.discard(id(node))
            known[id(node)] = size, depth + 1
        return known[id(node)]

    measure(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _twice(node: yaml.Node | None, visited: set[int] | None = None) -> Iterator[yaml.Node]:
    """The keys that a mapping has already; YAML would take the last without a word."""
    visited = set() if visited is None else visited
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
    for child in _children(node):
        yield from _twice(child, visited)
