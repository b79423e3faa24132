"""What is wrong with the fields of a document, in words: which field, its value, what is expected.

pydantic finds the faults. Its own words are about Python's types, and name classes of ours; here
they are about what is written in the file.
"""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic
import yaml

LONGEST = 60
"""Characters of a value that are shown."""

_EXPECTED = {
    "bool": "true or false",
    "date": "a date, as 2026-12-20",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "invalid_key": "the name of a field",
    "list": "a list",
    "tuple": "a list",
    "string": "a text (in quotes where YAML takes it for something else)",
    "finite_number": "a finite number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "model": "a mapping",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "of the form {pattern}",
    "too_short": "a list that is not empty",
}
"""By the kind of a fault, or by what comes before its first underscore."""


def faults(
    error: pydantic.ValidationError,
    kind: type[pydantic.BaseModel],
    root: yaml.Node | None,
    whole: str,
) -> list[str]:
    """Every fault once, in their order: `line 3: tasks.cars.accuracy: it is 2, and must be …`.

    Args:
        error: What pydantic found.
        kind: Of record that the document is.
        root: Of the document.
        whole: What the document is called, for a fault that is no field's.
    """
    found: dict[tuple[int, str], tuple[Any, list[str]]] = {}
    entries = error.errors(include_url=False)
    paths = [_path(root, kind, fault["loc"]) for fault in entries]
    for fault, (line, path) in zip(entries, paths, strict=True):
        about_all = fault["type"].endswith(("_type", "too_short"))
        if about_all and any(_is_below(other, path) for _, other in paths):
            continue  # what is in it is wrong; or a branch of a union that it was not meant for
        words = found.setdefault((line, _dotted(path)), (fault, []))[1]
        if (said := expected(fault)) not in words:
            words.append(said)
    return [
        f"line {line}: {place or whole}: {_told(fault, kind, words)}"
        for (line, place), (fault, words) in found.items()
    ]


def expected(fault: Mapping[str, Any]) -> str:
    """What pydantic expected, as the end of `it must be …`; the message of a validator of ours."""
    name = fault["type"]
    if name in ("value_error", "assertion_error"):
        return str(fault["msg"]).partition(", ")[2]
    form = _EXPECTED.get(name) or _EXPECTED.get(name.partition("_")[0], "something else")
    return form.format(**fault.get("ctx", {}))


def shown(value: object) -> str:
    """A value as a message has it: as YAML writes it, cut."""
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _told(fault: Mapping[str, Any], kind: type[pydantic.BaseModel], words: Sequence[str]) -> str:
    if fault["type"] == "missing":
        return "it is missing"
    if fault["type"] == "extra_forbidden":
        known = list(_kind_at(kind, fault["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, 1)
        hint = f"did you mean {close[0]}? It has" if close else "it has"
        return f"there is no such field; {hint} {', '.join(known)}"
    if fault["type"] in ("value_error", "assertion_error"):
        return " or ".join(words)
    if fault["type"] == "model_type":
        known = list(_kind_at(kind, fault["loc"]).model_fields)
        words = [f"a mapping with {', '.join(known)}"]
    return f"it is {shown(fault['input'])}, and must be {' or '.join(words)}"


def _path(
    root: yaml.Node | None, kind: type[pydantic.BaseModel], where: Sequence[int | str]
) -> tuple[int, tuple[int | str, ...]]:
    """The line, from 1, and the path of what pydantic names, as far as it is in the document.

    Names that pydantic gives to the branches of a union are left out.
    """
    line, path, node = 1 if root is None else root.start_mark.line + 1, list[int | str](), root
    for number, part in enumerate(where):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode) and (found := _entry(node, part)):
            key, node = found
            line = key.start_mark.line + 1
        elif part not in _kind_at(kind, where[:number]).model_fields:
            continue
        path.append(part)
    return line, tuple(path)


def _entry(node: yaml.MappingNode, name: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    return next((pair for pair in node.value if pair[0].value == str(name)), None)


def _is_below(path: tuple[int | str, ...], above: tuple[int | str, ...]) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _dotted(path: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _kind_at(kind: type[pydantic.BaseModel], path: Sequence[int | str]) -> type[pydantic.BaseModel]:
    """The kind of record that a path leads to."""
    found = kind
    for part in path:
        field = found.model_fields.get(str(part))
        if field is not None:
            found = next(_kinds_in(field.annotation), found)
    return found


def _kinds_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _kinds_in(inner)
