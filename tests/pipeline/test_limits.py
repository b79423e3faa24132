"""More than MLflow keeps in one place: nothing is cut off without a word."""

import json

import mlflow
import pytest
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.support import canonical

NAME = "a name of fifty characters, so that the list grows "


def register(folder, name, value):
    """A version of another flavor, as small as can be."""
    folder.mkdir()
    save_file({"x": torch.full((4,), value)}, folder / "model.safetensors")
    (folder / "MLmodel").write_text("flavors: {other: {}}\n")
    made = mlflow.MlflowClient().create_model_version(name, str(folder))
    return f"models:/{name}/{made.version}"


def test_two_hundred_sources_and_a_pattern_of_ten_thousand_characters(store, tmp_path):
    client = mlflow.MlflowClient()
    for name in ("base", NAME):
        client.create_registered_model(name)
    base = register(tmp_path / "base", "base", 1.0)
    sources = [register(tmp_path / str(i), NAME, 1 + (i + 1) / 1024) for i in range(200)]
    settings = recipe.MergeRecipe.from_method(
        "task_arithmetic",
        sources=200,
        alpha=1 / 256,
        include=("*", "y" * 10_000),
        weights=tuple(1 + i / 1024 for i in range(200)),
    )
    request = flow.MergeRequest(
        base, tuple(sources), "merged", settings, device="cpu", backend="reference"
    )
    made = flow.merge(request).version

    run = mlflow.get_run(made.run_id)
    params = run.data.params
    assert [params[f"source.{i}"] for i in range(200)] == sources
    include = canonical.dumps(list(settings.include))
    assert params["include"] == f"{canonical.sha256(include)}, see recipe.json"
    assert json.loads(params["weights"]) == list(settings.weights)
    (note,) = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes.json"))
    assert note.startswith(f"the recipe's include has the pattern '{'y' * 99}…', which matches no")
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/recipe.json")
    assert json.loads(text) == settings.to_dict()

    tags = versions.resolve(made.uri).tags
    assert len(tags["breadcrumbs.sources"]) > 8000  # what a run's tag would keep of it
    assert json.loads(tags["breadcrumbs.sources"]) == sources
    assert sum(key.startswith("breadcrumbs.source/") for key in tags) == 200
    own = {key: value for key, value in tags.items() if key != "breadcrumbs.ledger_head"}
    assert dict(versions.resolve(f"models:/{made.model_id}").tags).items() >= own.items()
    parents = relatives.tree(made.uri).parents
    assert [parent.uri for parent in parents] == [base, *sources]
    assert flow.merge(request).reused


def test_a_tag_that_is_too_long_stops_the_merge():
    tag_keys.check({"breadcrumbs.sources": "x" * 100_000})
    words = "breadcrumbs.sources would have 100001 characters, and MLflow keeps 100000; merge fewer"
    with pytest.raises(errors.RegistryError, match=words):
        tag_keys.check({"breadcrumbs.sources": "x" * 100_001})
