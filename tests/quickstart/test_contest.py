"""The quickstart's comparison of methods: it is a study, with the numbers of the main flow."""

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.quickstart import contest
from mlflow_breadcrumbs.search import workbench


def test_untuned_rows_are_presets_tuned_ones_have_the_best_alpha_and_all_a_merges_numbers(zoo):
    materials = workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu")
    alphas = (0.5, 1.0, 2.0)
    with workbench.opened(materials) as bench:
        entries = contest.contest(bench, alphas)
        presets = {
            method: bench.settled(drafts.draft(sources=3, method=method))
            for method in contest.METHODS
        }
        validated = {
            alpha: bench.measure(
                recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=alpha)
            ).average_accuracy
            for alpha in alphas
        }
    base, sources, *merged = entries
    assert [entry.name for entry in entries] == [
        "base",
        "sources, each its own",
        "weight_average",
        "task_arithmetic, tuned",
        "task_arithmetic",
        "tsv_m",
        "breadcrumbs_calibrated",
        "auto",
        "breadcrumbs, tuned",
        "breadcrumbs",
    ]
    named = {entry.name: entry for entry in merged}
    for method, settings in presets.items():
        assert named[method].alpha == settings.alpha
    tuned = named["breadcrumbs, tuned"].alpha
    assert validated[tuned] == max(validated.values())
    assert (base.alpha, sources.alpha, sources.kept) == (None, None, 1.0)
    for name, alpha in (("breadcrumbs, tuned", tuned), ("breadcrumbs_calibrated", None)):
        method = name.removesuffix(", tuned")
        settings = recipe.MergeRecipe.from_method(method, sources=3, alpha=alpha)
        result = flow.merge(
            flow.MergeRequest(
                zoo.base, zoo.sources, f"merged-{method}", settings, tasks=zoo.tasks, device="cpu"
            )
        )
        *rows, average = result.rows()
        assert named[name].kept == average["normalized_accuracy"]
        for row in rows:
            assert named[name].accuracies[row["task"]] == row["accuracy"]
            assert base.accuracies[row["task"]] == row["zero_shot_accuracy"]
            assert sources.accuracies[row["task"]] == row["finetuned_accuracy"]
