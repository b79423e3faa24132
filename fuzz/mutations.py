"""Damaged documents, drawn by hypothesis from sound ones: bytes are changed, or values."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

TOKENS = (
    b"[" * 300, b"]" * 300, b"{" * 300, b'{"a":' * 100, b"- " * 100, b"(" * 300,
    b"9" * 5_000, b"0x" + b"f" * 5_000, b"-1", b"1e999", b"-0", b"NaN", b".inf", b"Infinity",
    b"9007199254740993", b"4611686018427387904", b"18446744073709551616", b"3000000",
    b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\x1b[31m",
    b"&a ", b"*a", b"<<: ", b"? ", b"!!int ", b"!!timestamp ", b"!!binary ", b"!!set ",
    b"2026-13-45", b"1:2:3", b"%YAML 9.9\n---\n", b"---\n", b"\n\n", b"\t", b": ", b"#", b'"', b"'",
    b"../", b"models:/x/1", b"PK\x03\x04", b"\x80\x02", b"data_offsets", b"null", b"true", b"",
)  # fmt: skip
"""What readers trip over."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**62, 2**64, 10**400, 0.5, -0.0, 1e308,
    float("inf"), float("nan"), "", "x", "\ud800", "\0", "\x1b[31m", "../x", "a" * 5_000, "é",
    "models:/x/1", [], {}, [[]], [0, 2**62], ["x"] * 2_000, {"a": None}, {"": ""}, {"type": "x"},
)  # fmt: skip
"""What a field is not made for."""


def examples(target: str) -> list[bytes]:
    """The sound inputs of a target, sorted by their files' names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def damaged(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """One of the examples with some of its bytes changed, or values, or anything at all."""
    content = draw(st.sampled_from(sound))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind >= 5 and (changed := _with_other_values(draw, content)) is not None:
        return changed
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 16)))
        new = draw(
            st.one_of(
                st.sampled_from(TOKENS),
                st.binary(max_size=4),
                st.just(content[start : start + 40] * draw(st.integers(0, 40))),
                st.sampled_from(sound).map(lambda other: other[: len(other) // 2]),
            )
        )
        content = content[:start] + new + content[stop:]
    return content


def _with_other_values(draw: st.DrawFn, content: bytes) -> bytes | None:
    """A document with one or several of its values replaced; `None` for what is no document."""
    header = content[8:] if content[8:9] == b"{" else content  # of safetensors
    size = int.from_bytes(content[:8], "little") if header is not content else len(content)
    text = header[:size]
    as_json = text.lstrip()[:1] in (b"{", b"[")
    try:
        whole = json.loads(text) if as_json else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return None
    if not isinstance(whole, dict | list):
        return None
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(whole))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        action = draw(st.integers(0, 3))
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[draw(st.sampled_from(("x", "", "\ud800", "a" * 300, "type")))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    if header is content:
        return (json.dumps(whole) if as_json or draw(st.booleans()) else _as_yaml(whole)).encode(
            errors="surrogatepass"
        )
    made = json.dumps(whole).encode()
    return len(made).to_bytes(8, "little") + made + header[size:]


def _as_yaml(whole: Any) -> str:
    try:
        return str(yaml.safe_dump(whole, allow_unicode=True))
    except (yaml.YAMLError, ValueError):
        return json.dumps(whole)


def _places(whole: Any) -> list[tuple[Any, Any]]:
    """Every list or mapping in a document with an index or a key of it."""
    found: list[tuple[Any, Any]] = []
    waiting = [whole]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found
