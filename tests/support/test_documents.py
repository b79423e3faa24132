"""YAML and JSON from outside: one clear message, at once, for all that is beyond the limits."""

import json
import os

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.search import grids
from mlflow_breadcrumbs.support import documents, json_documents

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))

HOSTILE = {
    "aliases that multiply": (LAUGHS, "line 5: its aliases stand for more than 50,000 values"),
    "aliases that nest": (CHAIN, "line 40: it is nested deeper than 40 levels"),
    "a cycle": ("a: &a [1, *a]\n", "line 1: it contains itself, through an alias"),
    "a cycle of mappings": ("a: &a {b: {c: *a}}\n", "line 1: it contains itself"),
    "a key that contains itself": ("? &a [*a]\n: 1\n", "line 1: it contains itself"),
    "20,000 keys": ("".join(f"k{n}: 1\n" for n in range(20_000)), "20,000 keys, 5,000 is the most"),
    "many values": ("- [" + "1," * 60_000 + "]", "line 1: it has more than 50,000 values"),
    "6 kB of nesting": ("[" * 6_000, "line 1: it is nested deeper than 40 levels"),
    "nesting by lines": (
        "".join(" " * n + "b:\n" for n in range(90)),
        "line 40: it is nested deeper",
    ),
    "a day that is none": ("a: 2026-13-45\n", "is not YAML: month must be in 1..12"),
    "a wrong tag": ("a: !!int x\n", "is not YAML: invalid literal for int()"),
    "a wrong time": ("a: !!timestamp x\n", "is not YAML: "),
    "a wrong float": ("a: !!float x\n", "is not YAML: could not convert string to float"),
    "a wrong bool": ("a: !!bool x\n", "is not YAML: 'x'"),
    "an object": ("a: !!python/object/apply:os.system [ls]\n", "is not YAML: could not determine"),
    "5,000 digits": (f"a: {'9' * 5_000}\n", "line 1: a number of 5,000 characters, at most 100"),
    "5,000 hexadecimal digits": (f"a: 0x{'f' * 5_000}\n", "line 1: a number of 5,002 characters"),
    "a large integer": ("a: 9007199254740992\n", "line 1: the integer 9007199254740992 is beyond"),
    "one in base 16": ("a: 0xffffffffffffffff\n", "line 1: the integer 18446744073709551615 is be"),
    "a lone surrogate": ('a: "\\ud800"\n', r"line 1: '\ud800' is no Unicode text"),
    "one in a key": ('"\\udc00": 1\n', r"line 1: '\udc00' is no Unicode text"),
    "a control character": ("a: '\x07'\n", "is not YAML: unacceptable character"),
    "2 MB": ("#" * 2_000_000, "characters, 1,048,576 is the most"),
    "two documents": ("a: 1\n---\nb: 2\n", "is not YAML: expected a single document"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_one_message(case):
    text, words = HOSTILE[case]
    with pytest.raises(errors.RecipeError) as caught:
        documents.parse(text, "the file x.yaml", errors.RecipeError)
    assert str(caught.value).startswith("the file x.yaml is ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


READERS = {
    "policy": (policies.load, errors.PolicyError),
    "recipe": (recipe.load_fields, errors.RecipeError),
    "grid": (grids.load, errors.RecipeError),
    "task file": (tasks.load_tasks, errors.TaskError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_every_reader_of_yaml_refuses_it(tmp_path, reader, case):
    read, kind = READERS[reader]
    path = tmp_path / "x.yaml"
    path.write_text(HOSTILE[case][0])
    with pytest.raises(kind):
        read(path)


@pytest.mark.parametrize("reader", READERS)
def test_pipes_folders_and_devices_are_refused_at_once(tmp_path, reader):
    read, kind = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(kind, match=f"can't be read: it is {what}, not a file"):
            read(path)
    with pytest.raises(kind, match="can't be read: it is a device, not a file"):
        read("/dev/zero")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(kind, match="can't be read: it is a device, not a file"):
        read(tmp_path / "link")


def test_what_people_write_is_read_as_before():
    text = "a: &names [x, y]\nb: *names\nc: 2026-01-02\nd: 0x1f\ne: 1.5e+3\nf: {<<: {g: 1}, h: 2}\n"
    found = documents.parse(text, "x", errors.RecipeError).content
    assert found["a"] == found["b"] == ["x", "y"]
    assert (found["d"], found["e"], found["f"]) == (31, 1500.0, {"g": 1, "h": 2})
    many = "classes:\n" + "".join(f"- class {n}\n" for n in range(22_000))  # ImageNet-21k
    assert len(documents.parse(many, "x", errors.RecipeError).content["classes"]) == 22_000


JSON = {
    "nesting": ("[" * 100_000, "x is refused: it is nested deeper than 64 levels"),
    "nesting that parses": ("[" * 300 + "]" * 300, "x is refused: it is nested deeper than 64"),
    "nested objects": ('{"a":' * 90 + "1" + "}" * 90, "x is refused: it is nested deeper than 64"),
    "a large integer": ("[9007199254740992]", "the integer 9007199254740992 is beyond ±90071992"),
    "a negative one": ("[-9007199254740993]", "the integer -9007199254740993 is beyond ±9007199"),
    "5,000 digits": (f"[{'9' * 5_000}]", "x is refused: the integer 999"),
    "a lone surrogate": (r'["\ud800"]', r"""the string '\ud800' is no Unicode text"""),
    "a lone surrogate in a key": (r'[[{"\uDC00": 1}]]', r"""the string '\udc00' is no Unicode"""),
    "NaN": ("[NaN]", "x is refused: NaN is no number in JSON"),
    "infinity": ("[-Infinity]", "x is refused: -Infinity is no number in JSON"),
    "an overflow": ("[1e999]", "x is refused: the number 1e999 is larger than a double holds"),
    "a key twice": ('{"a": 1, "a": 2}', "x is refused: the key 'a' is given twice"),
    "no JSON": ("{", "x is not JSON: Expecting property name"),
    "nothing": ("", "x is not JSON: Expecting value"),
}


@pytest.mark.parametrize("case", JSON)
def test_hostile_json_is_one_message(case):
    text, words = JSON[case]
    for content in (text, text.encode()):
        with pytest.raises(errors.StatementError) as caught:
            json_documents.parse(content, "x", errors.StatementError)
        assert str(caught.value).startswith("x is ")
        assert words in str(caught.value)
        assert len(str(caught.value)) < 300


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path):
    with pytest.raises(errors.StatementError, match="x is not text in UTF-8"):
        json_documents.parse(b"\xff[]", "x", errors.StatementError)
    with pytest.raises(errors.StatementError, match="x is not text in UTF-8"):
        json_documents.parse('["a"]'.encode("utf-16"), "x", errors.StatementError)
    (tmp_path / "x").write_text("[" + " " * 2_000 + "]")
    with pytest.raises(errors.StatementError, match="x is refused: it has 2,002 bytes, and 1,000"):
        json_documents.read(tmp_path / "x", "x", errors.StatementError, most=1_000)
    assert json_documents.read(tmp_path / "x", "x", errors.StatementError) == []


def test_sound_json_is_what_the_library_reads():
    content = {"a": [1, -2.5, None, True, "é😀"], "b": {"c": 2**53 - 1}, "d": [[[]]]}
    for ascii_only in (True, False):
        text = json.dumps(content, ensure_ascii=ascii_only)
        assert json_documents.parse(text, "x", errors.StatementError) == content
