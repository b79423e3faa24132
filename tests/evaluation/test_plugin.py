"""The plugin, through MLflow's own `evaluate`."""

import base64
import logging

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow


def frame(zoo, names, *, as_file="path"):
    """The test images of tasks, as users have them."""
    rows = []
    for name in names:
        images = tasks.find(tasks.load_tasks(zoo.tasks), name).images("test")
        for example in images.examples:
            content = example.read()
            cell = {
                "path": example.origin,
                "bytes": content,
                "base64": base64.b64encode(content).decode(),
            }[as_file]
            rows.append({"image": cell, "label": images.classes[example.label], "task": name})
    return pd.DataFrame(rows)


def measure(uri, data, **settings):
    return mlflow.models.evaluate(
        uri,
        data,
        targets="label",
        model_type="classifier",
        evaluators="breadcrumbs",
        **settings,
    )


def test_the_metrics_are_those_of_evaluate(zoo):
    names = ["colours", "tints"]
    merged = flow.merge(
        flow.MergeRequest(
            zoo.base,
            zoo.sources[:2],
            "merged",
            recipe.MergeRecipe.from_method("breadcrumbs", sources=2),
            device="cpu",
        )
    ).version
    ours = evaluating.evaluate_version(merged.uri, zoo.tasks, only=names, device="cpu")
    with mlflow.start_run() as run:
        found = measure(f"models:/{merged.model_id}", frame(zoo, names))
    assert found.metrics == ours.metrics()
    logged = mlflow.get_run(run.info.run_id)
    assert logged.data.metrics == ours.metrics()
    assert {entry.model_id for entry in logged.inputs.model_inputs} == {merged.model_id}
    table = found.artifacts["per_class.csv"].content
    assert set(table["task"]) == set(names)
    assert found.artifacts["confusion/tints.png"].content.width > 300
    matrix = found.artifacts["confusion/colours.csv"].content
    assert list(matrix.columns) == ["true class", "red", "green", "blue"]
    assert int(matrix.iloc[:, 1:].to_numpy().sum()) == 6


@pytest.mark.parametrize("as_file", ["bytes", "base64"])
def test_one_task_needs_no_column_and_labels_may_be_numbers(zoo, as_file):
    data = frame(zoo, ["colours"], as_file=as_file).drop(columns="task")
    named = measure(zoo.sources[0], data).metrics
    classes = ["red", "green", "blue"]
    numbered = data.assign(label=[classes.index(label) for label in data["label"]])
    assert measure(zoo.sources[0], numbered).metrics == named


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"label": "mauve"}, {}, "The label 'mauve' in row 0 is no class of task 'colours'"),
        ({"task": "smells"}, {}, "has no task 'smells'; it has colours"),
        ({"image": "none.png"}, {}, "is neither a file here nor base64 nor bytes"),
        ({"image": b"no picture"}, {}, "The image in row 0 can't be decoded"),
        ({}, {"evaluator_config": {"size": 3}}, "evaluator_config has 'size'"),
    ],
)
def test_bad_input_is_mlflows_error_with_our_words(zoo, change, settings, words):
    with pytest.raises(MlflowException, match=words):
        measure(zoo.sources[0], frame(zoo, ["colours"]).assign(**change), **settings)


def test_data_without_a_column_of_images_says_so(zoo):
    data = frame(zoo, ["colours"]).rename(columns={"image": "picture"})
    with pytest.raises(MlflowException, match="must be a DataFrame with the images in a column"):
        measure(zoo.sources[0], data)


def test_models_of_other_flavors_are_left_to_other_evaluators(store, caplog, monkeypatch):
    # A store that was made in this process has let Alembic disable the loggers that there were.
    monkeypatch.setattr(
        logging.getLogger("mlflow_breadcrumbs.evaluation.plugin"), "disabled", False
    )
    model = LogisticRegression().fit([[0.0], [1.0]], ["a", "b"])
    info = mlflow.sklearn.log_model(model, name="other", pip_requirements=["scikit-learn"])
    data = pd.DataFrame({"x": [0.0, 1.0], "label": ["a", "b"]})
    with pytest.raises(MlflowException, match="could not be evaluated by any"):
        measure(info.model_uri, data)
    assert "measures versions of the flavor 'breadcrumbs'" in caplog.text
