"""Foreign text shows as it is, and is obeyed by nobody."""

import json

import pytest
from markdown_it import MarkdownIt

from mlflow_breadcrumbs.support import escaping

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202emoc\x00\r\n\ud800"


def test_a_terminal_gets_no_control_character():
    shown = escaping.line(NASTY)
    assert shown == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202emoc\\x00\\r\\n\\ud800"
    assert escaping.lines("one\n\ttwo\x1b") == "one\n\ttwo\\x1b"
    assert escaping.line("Zürich 猫 👩‍🚀") == "Zürich 猫 👩‍🚀"


def test_json_keeps_its_value():
    value = {"a": NASTY, "b": "é"}
    shown = escaping.json(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(shown) == value
    assert "\x9b" not in shown
    assert "\u202e" not in shown
    assert "é" in shown


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "[click](https://evil.example)",
        "![](https://evil.example/pixel.png)",
        "https://evil.example",
        "a `code` b",
        "**bold** __b__ *i* ~~s~~",
        "# title",
        "- item",
        "1. item",
        "1.",
        "12) item",
        "---",
        "+ item",
        "= under",
        "&lt;b&gt; &copy;",
        "back\\slash \\<b>",
        "a | b",
        "www.evil.example a@evil.example @someone #12",
        "_a_ snake_case __init__ 12:30",
    ],
)
def test_markdown_shows_the_text_itself(text):
    reader = MarkdownIt("gfm-like", {"linkify": False})
    for written in (escaping.markdown(text), escaping.code(text)):
        (opened, inline, closed) = reader.parse(written)
        assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
        kinds = {child.type for child in inline.children}
        assert kinds <= {"text", "code_inline", "text_special"}, written
        assert "".join(child.content for child in inline.children) == text


def test_plain_text_stays_as_it_is():
    for text in (
        "open_clip_torch 3.3.0, a (b)",
        "2026-03-03T14:00:00Z",
        "CC-BY-4.0",
        "größe 100%",
        "0.95",
        "-0.5",
        "(c)",
    ):
        assert escaping.markdown(text) == text


def test_a_line_break_does_not_leave_the_line():
    assert escaping.markdown("a\n\n# b") == "a\\\\n\\\\n\\# b"
