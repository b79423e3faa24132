"""Ancestors and descendants, held against the definition on random graphs."""

from graphs import PAIRS, made, version
from hypothesis import given
from hypothesis import strategies as st

from mlflow_breadcrumbs.registry import graph


def reachable(pairs, start):
    found = {start}
    for _ in range(8):
        found |= {b for a, b in pairs if a in found}
    return {str(number) for number in found}


@given(PAIRS, st.integers(0, 7))
def test_ancestors_are_what_edges_lead_to_and_descendants_the_way_back(pairs, start):
    known = made(pairs)
    up, down = known.ancestors(str(start)), known.descendants(str(start))
    assert set(up.versions) == reachable(pairs, start)
    assert set(down.versions) == reachable([(b, a) for a, b in pairs], start)
    assert {edge for at in up.versions for edge in known.parents(at)} == set(up.edges)
    assert up.ancestors(str(start)) == up


def test_a_parent_without_a_version_stays_an_edge():
    known = graph.Graph([version("1")], [graph.Edge("1", "gone", "base", 0)])
    assert (set(known.ancestors("1").versions), len(known.ancestors("1").edges)) == ({"1"}, 1)
    assert set(known.descendants("gone").versions) == {"1"}
