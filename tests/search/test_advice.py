"""What the findings are, and that they name whom they are about and what to do."""

import numpy as np
import pytest

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends.cpu import geometry
from mlflow_breadcrumbs.search import advice

RECIPE = recipe.MergeRecipe.from_method("breadcrumbs", sources=3)


def evidence(norms, *, cosine=0.0, conflict=0.5, kept=0.5, digests=None, settings=RECIPE):
    """Sources with these norms on a base of norm 100, all pairs alike."""
    count, norms = len(norms), np.array(norms, float)
    angles = np.full((count, count), cosine)
    np.fill_diagonal(angles, 1)
    both = np.full((count, count), 1000)
    opposed = np.full((count, count), round(1000 * conflict))
    np.fill_diagonal(opposed, 0)
    measured = geometry.Geometry(
        10_000, 100.0**2, angles * np.outer(norms, norms), kept * norms**2, both, opposed
    )
    labels = tuple("abcdefgh"[:count])
    return advice.Comparand(labels, measured, settings, 1.0, digests or labels)


def only(found):
    (finding,) = advice.findings(found)
    return finding


def test_independent_task_vectors_of_one_length_are_fine():
    found = only(evidence([2, 2.5, 3]))
    assert (found.kind, found.sources) == ("none", ())


def test_a_source_that_merge_would_refuse_is_named_with_the_limit():
    found = only(evidence([2, 2, 140]))
    assert (found.kind, found.sources) == ("another base", ("c",))
    assert "1.4 times as long as the base, and merge refuses more than 1" in found.advice


def test_a_source_far_above_the_others_is_named_though_merge_would_take_it():
    found = only(evidence([2, 2, 2, 40]))
    assert (found.kind, found.sources) == ("another base", ("d",))
    assert "20 times as long as the others'" in found.advice


def test_norms_that_differ_are_named_with_weights_that_make_them_alike():
    found = only(evidence([1, 2, 4]))
    assert (found.kind, found.sources) == ("norms", ("c", "a"))
    assert "by a factor of 4" in found.advice
    assert "--source a=2 --source b=1 --source c=0.5" in found.advice


def test_sources_that_point_the_same_way():
    found = only(evidence([1, 1], cosine=0.99, conflict=0.0))
    assert (found.kind, found.sources) == ("alike", ("a", "b"))
    assert "count twice" in found.advice


def test_sources_that_undo_each_other():
    kinds = [finding.kind for finding in advice.findings(evidence([1, 1], cosine=-0.5))]
    assert kinds == ["opposed"]


def test_copies_and_the_base_itself():
    found = advice.findings(evidence([1, 1, 0], cosine=1.0, digests=("x", "x", "y")))
    assert [(finding.kind, finding.sources) for finding in found][:2] == [
        ("refused", ("c",)),
        ("refused", ("a", "b")),
    ]
    assert "have the same weights, and merge refuses that" in found[1].advice


def test_a_sign_conflict_leads_to_no_advice():
    """What would follow from it, a consensus of signs, helped nothing where it was measured."""
    assert only(evidence([1, 1], conflict=0.7)).kind == "none"


def test_masks_that_keep_little():
    found = only(evidence([1, 1], kept=0.1))
    assert (found.kind, found.sources) == ("energy", ("a", "b"))
    assert "(least: 10.0%)" in found.advice


@pytest.mark.parametrize("norms", [[1], [0], [0, 0]])
def test_few_or_empty_sources_break_nothing(norms):
    assert advice.findings(evidence(norms))
