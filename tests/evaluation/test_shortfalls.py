"""Tasks that a merged model is of no use for are said, the worst first; the others are not."""

import pytest

from mlflow_breadcrumbs.evaluation import scorecard, scoring, shortfalls


def accuracy(correct, total=100, classes=4):
    names = tuple(f"class {number}" for number in range(classes))
    outcomes = ((0, 0, correct), (0, 1, total - correct))
    return scoring.Accuracy(
        "t", "t/test", correct, total, "file", "sha256:0", 1, 0.0, names, outcomes
    )


def row(task, base, source, merged, **options):
    base, source, merged = (accuracy(right, **options) for right in (base, source, merged))
    return scorecard.TaskScore(task, "models:/s/1", base, source, merged).to_dict()


def test_a_task_that_goes_well_is_not_spoken_of():
    assert shortfalls.warnings([row("cars", 50, 90, 70), row("signs", 70, 90, 70)]) == ()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((20, 90, 30), "cars: 0.300 can't be told from guessing among its classes (0.250)"),
        ((70, 90, 40), "cars: 0.400 is below the base's 0.700"),
        (
            (70, 90, 68),
            "cars: 0.680 is below the base's 0.700, though on so few images that may be luck",
        ),
        ((30, 100, 45), "cars: 0.450 is 45% of what its source has"),
    ],
)
def test_what_is_said_of_a_task(numbers, said):
    assert shortfalls.warnings([row("cars", *numbers)]) == (said,)


def test_the_worst_comes_first():
    rows = [row("a", 30, 100, 45), row("b", 70, 90, 60), row("c", 70, 90, 40), row("d", 20, 90, 25)]
    assert [said[0] for said in shortfalls.warnings(rows)] == ["d", "c", "b", "a"]


def test_rows_of_a_release_that_did_not_tell_chance_are_judged_by_the_rest():
    old = {"task": "cars", "accuracy": 0.3, "zero_shot_accuracy": 0.5}
    assert shortfalls.warnings([old, {"task": "signs", "accuracy": 0.1}]) == (
        "cars: 0.300 is below the base's 0.500, though on so few images that may be luck",
    )
