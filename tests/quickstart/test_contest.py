"""The quickstart's comparison of methods: it is a study, with the numbers of the main flow."""

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.quickstart import contest
from mlflow_breadcrumbs.search import workbench


def test_each_method_has_its_best_alpha_and_the_numbers_of_a_merge(zoo):
    materials = workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu")
    alphas = (0.5, 1.0, 2.0)
    with workbench.opened(materials) as bench:
        base, sources, *merged = contest.contest(bench, alphas)
        validated = {
            alpha: bench.measure(
                recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=alpha)
            ).average_accuracy
            for alpha in alphas
        }
    assert [entry.name for entry in merged] == list(contest.METHODS)
    average, _, breadcrumbs = merged
    assert average.alpha is None
    assert validated[breadcrumbs.alpha] == max(validated.values())
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=breadcrumbs.alpha)
    result = flow.merge(
        flow.MergeRequest(zoo.base, zoo.sources, "merged", settings, tasks=zoo.tasks, device="cpu")
    )
    for row in result.rows()[:-1]:
        assert breadcrumbs.accuracies[row["task"]] == row["accuracy"]
        assert base.accuracies[row["task"]] == row["zero_shot_accuracy"]
        assert sources.accuracies[row["task"]] == row["finetuned_accuracy"]
