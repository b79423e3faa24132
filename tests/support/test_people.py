"""Two spellings of a name are one person, and what nobody sees is in no name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_breadcrumbs.support import people


@pytest.mark.parametrize(
    "name",
    [
        *("root", "Root", "ROOT", "root ", "\troot\n", "root@example.org", "Root@X", "ｒｏｏｔ"),
        *("DOM\\root", "corp.example\\Root", "ro\u200bot", "ro\x1bot", "\u202eroot", "ｒｏｏｔ＠x"),
        *("@root", "X\\@root", "ro\ufe0fot", "ro\u034fot", "root\u3164"),
    ],
)
def test_one_person(name):
    assert people.normal(name) == "root"


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Straße", "strasse"),
        ("Ann  Lee", "ann lee"),
        ("@x", "x"),
        ("@x@y", "x"),
        ("D\\@x", "x"),
        ("É", "e\u0301"),
        (" ", ""),
    ],
)
def test_the_form(name, normal):
    import unicodedata

    assert people.normal(name) == unicodedata.normalize("NFKC", normal)


@given(st.text())
def test_the_form_of_a_form_is_itself(name):
    once = people.normal(name)
    assert people.normal(once) == once or "@" in once or "\\" in once


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("ann", None),
        ("Ann Lee", None),
        ("ann\x1b[2K", "it has the control character U+001B"),
        ("ann\u200b", "it has the control character U+200B"),
        ("\u202eann", "it has the control character U+202E"),
        ("ann\ufe0f", "it has the control character U+FE0F"),
        ("ann\u3164", "it has the control character U+3164"),
        ("@", "it is empty"),
        (" ", "it is empty"),
        ("", "it is empty"),
    ],
)
def test_what_is_no_name(name, fault):
    assert people.fault(name) == fault
