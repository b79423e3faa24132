"""The page on threats names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test():
    page = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
    promised, _, rest = page.partition("## What is not promised")
    assert rest
    rows = [line for line in promised.splitlines() if re.match(r"\| (?!promise)", line)]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(tests/\S+?)::(\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in there, f"{file} has no {name}"
