"""MLflow's own pages tell what was made, and never instead of a person."""

import re
import shlex

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.lineage import stories
from mlflow_breadcrumbs.registry import pages, versions

NOTE = "mlflow.note.content"


def note(run_id):
    return mlflow.get_run(run_id).data.tags[NOTE]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def merge(zoo, name="merged", *more):
    words = ["merge", "--base", zoo.base, "--sources", ",".join(zoo.sources[:2])]
    words += ["--registered-model", name, "--method", "breadcrumbs", "--alpha", "0.5", *more]
    run(*words)
    return mlflow.MlflowClient().get_model_version(name, "1")


def test_every_way_to_combine_has_its_words():
    assert set(stories.METHODS) == set(recipe.COMBINE)


@pytest.mark.parametrize("method", ["ace", "lora"])
def test_what_a_method_for_matrices_did(zoo, method):
    run(
        *("merge", "--base", zoo.base, "--sources", ",".join(zoo.sources[:2])),
        *("--registered-model", "merged", "--method", method),
    )
    text = mlflow.MlflowClient().get_model_version("merged", "1").description
    assert {"ace": "adaptive covariances (ACE", "lora": "(Iso-CTS"}[method] in text
    card = run("export", "models:/merged/1", "--format", "model-card")
    assert {"ace": "adaptive covariances (ACE", "lora": "(Iso-CTS"}[method] in card


def test_a_merge_has_its_accuracies_recipe_sources_and_the_next_command(zoo):
    version = merge(zoo, "merged", "--tasks", zoo.tasks, "--device", "cpu")
    text = version.description
    assert text == note(version.run_id)
    metrics = mlflow.get_run(version.run_id).data.metrics
    kinds = ("zero_shot_accuracy", "finetuned_accuracy", "accuracy", "normalized_accuracy")
    for task in ("colours", "tints"):
        row = "&emsp; | ".join(f"{metrics[f'{kind}/{task}']:.3f}" for kind in kinds)
        assert f"| {task}&emsp; | {row} |" in text
    assert text.startswith(
        "One model for 2 tasks (colours, tints), merged without training from 2 "
    )
    kept = metrics["average_normalized_accuracy"]
    assert f"average accuracy is {metrics['average_accuracy']:.3f}, where the base has" in text
    assert f"on average it keeps {kept:.3f} of a source's." in text
    assert (
        "Method `breadcrumbs`, with density 0.14, gamma 0.01, alpha 0.5: their changes were masked"
        in text
    )
    assert "below" not in text
    assert "- base: [models:/tiny/1](#/models/tiny/versions/1)" in text
    assert "- source: [models:/tiny-tints/1](#/models/tiny-tints/versions/1)" in text
    (command,) = re.findall("```sh\nmlflow-breadcrumbs (.*)\n```", text)
    assert shlex.split(command)[:4] == ["promote", "merged", "--version", "1"]
    assert mlflow.MlflowClient().get_registered_model("merged").description.startswith("Merges of")
    model = mlflow.get_logged_model(versions.resolve("models:/merged/1").model_id)
    assert model.name == "merged"


def test_the_metrics_that_matter_come_first(zoo):
    """MLflow's page of a run has them in the order in which the store gives them."""
    version = merge(zoo, "merged", "--tasks", zoo.tasks, "--device", "cpu")
    names = list(mlflow.get_run(version.run_id).data.metrics)
    assert names[:4] == [
        "average_normalized_accuracy",
        "average_accuracy",
        "normalized_accuracy/colours",
        "normalized_accuracy/tints",
    ]
    assert names.index("merge_seconds") > names.index("accuracy/tints")
    found = evaluating.evaluate_version(zoo.sources[0], zoo.tasks, device="cpu")
    assert next(iter(mlflow.get_run(found.run_id).data.metrics)) == "average_accuracy"


def test_a_merge_that_nobody_measured_says_so(zoo):
    text = merge(zoo).description
    assert "Nobody measured yet what it can do." in text
    assert "mlflow-breadcrumbs evaluate models:/merged/1 --tasks tasks.yaml" in text
    assert "| task" not in text


def test_what_a_person_wrote_stays(zoo):
    client = mlflow.MlflowClient()
    client.create_registered_model("merged", description="Ours.")
    assert merge(zoo).description.startswith("One model")
    assert client.get_registered_model("merged").description == "Ours."
    client.update_model_version("merged", "1", "Mine.")
    merge(zoo)  # exists already
    assert client.get_model_version("merged", "1").description == "Mine."
    page = pages.Page("Another.")
    run_id = client.get_model_version("merged", "1").run_id
    before = note(run_id)
    pages.tell(page, run_id=run_id, uri="models:/merged/1", model="Another.")
    assert note(run_id) == before
    assert client.get_model_version("merged", "1").description == "Mine."


def test_sources_evaluations_and_studies_have_theirs(zoo):
    client = mlflow.MlflowClient()
    base = client.get_model_version("tiny", "1")
    assert base.description.startswith("The checkpoint base.safetensors, imported as")
    found = evaluating.evaluate_version(zoo.sources[0], zoo.tasks, device="cpu")
    text = note(found.run_id)
    for each in found.accuracies:
        cells = (each.task, str(each.correct), str(each.total), f"{each.value:.3f}")
        assert f"| {'&emsp; | '.join(cells)}&emsp; |" in text
    assert "[models:/tiny-colours/1](#/models/tiny-colours/versions/1)" in text
    common = ["--base", zoo.base, "--sources", ",".join(zoo.sources[:2])]
    run("compare", *common, "--log")
    run("sweep", *common, "--tasks", zoo.tasks, "--device", "cpu", "--alpha", "0.5,1")
    run("scaling", *common, "--tasks", zoo.tasks, "--device", "cpu", "--smallest", "1")
    for kind, words in {
        "compare": "The sources' changes side by side.",
        "sweep": "2 recipes on validation images. The best: ",
        "scaling": "How much of the sources' accuracy one model keeps",
    }.items():
        (made,) = mlflow.search_runs(
            filter_string=f"tags.`breadcrumbs.kind` = '{kind}'", output_format="list"
        )
        assert made.data.tags[NOTE].startswith(words)
        assert "- base: [models:/tiny/1](#/models/tiny/versions/1)" in made.data.tags[NOTE]


def test_a_fine_tuning_has_its_epochs_and_its_base(zoo):
    words = ["finetune", "--base", zoo.base, "--tasks", zoo.tasks, "--task", "colours"]
    run(*words, "--registered-model", "tuned", "--epochs", "1", "--device", "cpu")
    version = mlflow.MlflowClient().get_model_version("tuned", "1")
    accuracy = mlflow.get_run(version.run_id).data.metrics["validation_accuracy/colours"]
    assert f"&emsp; | {accuracy:.3f} |" in version.description
    assert "- base: [models:/tiny/1](#/models/tiny/versions/1)" in version.description


def test_a_decision_has_its_rules(family, tmp_path):
    (tmp_path / "policy.yaml").write_text("average_accuracy: 1.0")
    words = ["promote", "merged", "--version", "1", "--alias", "champion", "--policy"]
    run(*words, tmp_path / "policy.yaml", code=3)
    (made,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'promotion'",
        output_format="list",
    )
    assert made.data.tags[NOTE].startswith(
        "models:/merged/1 does not become champion: 1 of 2 rules"
    )
    assert "\n| average_accuracy&emsp; | " in made.data.tags[NOTE]


@pytest.mark.parametrize("name", ["[x](javascript)", "a|b `c`", "<img src=x>", "# a\n- b"])
def test_what_others_wrote_is_no_markdown(name):
    said = f"For {pages.listed([name])}."
    uri = f"models:/{name}/1"
    cells = [[pages.listed([name])]]
    page = pages.Page(said, ["task"], cells, "", [("base", uri)], ["lineage", uri])
    text = page.markdown()
    outside, command, _ = text.split("```")
    assert "<img" not in outside
    assert "[x](" not in outside
    assert "`" not in outside.replace("\\`", "")
    assert len(outside.splitlines()) == 12
    assert len(command.splitlines()) == 2
    row = outside.splitlines()[4]
    assert row.replace("\\|", "").count("|") == 2


def test_a_long_page_is_its_beginning(zoo):
    rows = [[f"task {number} " + "x" * 80] for number in range(90)]
    page = pages.Page("Much.", ["task"], rows, following=["mlflow-breadcrumbs", "lineage"])
    text = page.markdown()
    assert len(text) <= pages.LIMIT
    assert "task 19" in text
    assert "and 70 more rows" in text
    assert text.endswith("mlflow-breadcrumbs lineage\n```")
    assert len(pages.Page("y" * 9_000).markdown()) == pages.LIMIT


def test_a_page_that_cannot_be_written_fails_no_job(store, caplog):
    pages.tell(pages.Page("Much."), uri="models:/absent/1")
    assert "MLflow's pages do not tell of models:/absent/1" in caplog.text
