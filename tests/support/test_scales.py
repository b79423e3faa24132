"""What a metric's numbers mean: directions, ranges, and what is kept of a source's value."""

import math

import pytest

from mlflow_breadcrumbs.support import scales

LOSS = scales.Scale("loss", greater_is_better=False, low=0.0, high=math.inf)
ERROR = scales.Scale("error", greater_is_better=False)
MCC = scales.Scale("mcc", low=-1.0)


@pytest.mark.parametrize(
    ("scale", "value", "source", "kept"),
    [
        (scales.ACCURACY, 0.6, 0.8, 0.75),
        (ERROR, 0.4, 0.2, 0.75),  # the accuracies that they leave
        (MCC, 0.5, 1.0, 0.75),
        (LOSS, 2.0, 1.5, 0.75),
        (LOSS, 1.0, 1.5, 1.5),
        (LOSS, 0.0, 1.5, None),
        (scales.ACCURACY, 0.5, 0.0, None),
        (ERROR, 0.5, 1.0, None),
    ],
)
def test_what_is_kept_of_a_sources_value(scale, value, source, kept):
    found = scale.kept(value, source)
    assert found is None if kept is None else found == pytest.approx(kept)


@pytest.mark.parametrize("scale", [scales.ACCURACY, ERROR, MCC, LOSS])
def test_better_is_more_kept(scale):
    better, worse = (0.9, 0.3) if scale.greater_is_better else (0.3, 0.9)
    assert scale.gain(better, worse) == pytest.approx(0.6)
    assert scale.kept(better, 0.5) > 1 > scale.kept(worse, 0.5)
    assert scale.kept(0.5, 0.5) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_finite_number(value):
    assert "no finite number" in scales.ACCURACY.fault(value)


def test_outside_the_range():
    assert scales.ACCURACY.fault(1.5) == "1.5, outside its range 0 to 1"
    assert scales.ACCURACY.fault(1.0) is None
    assert LOSS.fault(1e9) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "a/b"}, "is not of the form"),
        ({"metric": "zero_shot_f1"}, "has a part that is taken"),
        ({"metric": "f1_low"}, "has a part that is taken"),
        ({"metric": "f1", "low": 1.0, "high": 1.0}, "is empty"),
        ({"metric": "f1", "low": math.nan}, "is empty"),
        ({"metric": "f1", "low": -math.inf}, "has no worst end"),
        (
            {"metric": "f1", "greater_is_better": False, "low": -1.0, "high": math.inf},
            "has no worst end",
        ),
        ({"metric": "accuracy", "high": 100.0}, "accuracy is a fraction"),
        ({"metric": "accuracy", "greater_is_better": False}, "accuracy is a fraction"),
    ],
)
def test_a_scale_that_means_nothing_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        scales.Scale(**fields)


@pytest.mark.parametrize("scale", [ERROR, MCC, LOSS])
def test_a_row_keeps_its_scale(scale):
    assert scales.of_row({"task": "x", **scale.to_dict()}) == scale


def test_a_row_of_another_metric_is_shown_in_the_columns_of_accuracies():
    row = {"task": "news", "value": 20.0, "zero_shot_value": 30.0, "examples": 7, **LOSS.to_dict()}
    shown = scales.shown(row)
    assert (shown["task"], shown["accuracy"], shown["images"]) == ("news (loss)", 20.0, 7)
    assert shown["zero_shot_accuracy"] == 30.0
    plain = {"task": "cars", "accuracy": 0.5}
    assert scales.shown(plain) == plain
