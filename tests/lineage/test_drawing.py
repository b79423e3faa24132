"""Mermaid and DOT: every version, every edge, and names that have a meaning there."""

import pytest
from graphs import version

from mlflow_breadcrumbs.lineage import drawing
from mlflow_breadcrumbs.registry import graph


@pytest.fixture
def known():
    return graph.Graph(
        [version("models:/top/1", tasks=("cars", "signs")), version('models:/a "b" <c> #1/1')],
        [
            graph.Edge("models:/top/1", "models:/gone/1", "base", 0),
            graph.Edge("models:/top/1", 'models:/a "b" <c> #1/1', "source", 1),
        ],
    )


def test_mermaid(known):
    assert drawing.mermaid(known) == (
        "flowchart TD\n"
        '    v0["models:/a #34;b#34; #60;c#62; #35;1/1<br>merge"]\n'
        '    v1["models:/gone/1<br>missing"]\n'
        "    style v1 stroke-dasharray: 5 5\n"
        '    v2["models:/top/1<br>merge<br>cars, signs"]\n'
        "    v2 -- base --> v1\n"
        "    v2 -- source --> v0\n"
    )


def test_dot(known):
    assert drawing.dot(known) == (
        "digraph lineage {\n"
        "    node [shape=box];\n"
        '    v0 [label="models:/a \\"b\\" <c> #1/1\\nmerge"];\n'
        '    v1 [label="models:/gone/1\\nmissing", style=dashed];\n'
        '    v2 [label="models:/top/1\\nmerge\\ncars, signs"];\n'
        '    v2 -> v1 [label="base"];\n'
        '    v2 -> v0 [label="source"];\n'
        "}\n"
    )
