"""A study merges in memory, from shared masks, to the bits and numbers of the main flow."""

import dataclasses
from pathlib import Path

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.search import workbench

BREADCRUMBS = recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=1.0)


def materials(zoo, **changes):
    return dataclasses.replace(
        workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu"), **changes
    )


def test_the_numbers_and_the_weights_are_those_of_a_merge(zoo):
    recipes = [
        BREADCRUMBS,
        dataclasses.replace(BREADCRUMBS, density=0.3, consensus="mass", weights=(1, 0.5, 2)),
        dataclasses.replace(BREADCRUMBS, unit="row", dtype="bfloat16"),
        recipe.MergeRecipe.from_method("ties", sources=3),
        dataclasses.replace(BREADCRUMBS, vectors="mean"),
        dataclasses.replace(BREADCRUMBS, vectors="whole_mean"),
    ]
    with workbench.opened(materials(zoo)) as bench:
        bench.prepare(recipes)
        found = []
        for settings in recipes:
            merged = bench.merge(settings)
            card = bench.score(merged, (0, 1, 2), split="test")
            assert checkpoints.state_dict_digest(merged.tensors) == merged.weights_digest
            found.append((merged.weights_digest, card.metrics()))
        assert [bench.measure(settings, split="test").metrics() for settings in recipes] == [
            metrics for _, metrics in found
        ]
    for settings, (digest, metrics) in zip(recipes, found, strict=True):
        result = flow.merge(
            flow.MergeRequest(
                zoo.base, zoo.sources, "merged", settings, tasks=zoo.tasks, device="cpu"
            )
        )
        assert result.version.weights_digest == digest
        assert dict(result.metrics) == metrics


def test_some_of_the_sources_are_merged_as_if_they_were_all(zoo):
    settings = dataclasses.replace(BREADCRUMBS, weights=(1, 0.5, 2))
    with workbench.opened(materials(zoo)) as bench:
        bench.prepare([settings])
        some = bench.merge(settings, (0, 2)).weights_digest
        card = bench.measure(settings, (0, 2))
    assert [score.task for score in card.scores] == ["colours", "hues"]
    with workbench.opened(materials(zoo, sources=(zoo.sources[0], zoo.sources[2]))) as bench:
        assert bench.merge(dataclasses.replace(settings, weights=(1, 2))).weights_digest == some


def test_changed_weights_are_refused_before_anything_is_measured(zoo, tmp_path, monkeypatch):
    resolved = versions.resolve(zoo.sources[1])
    copied = dataclasses.replace(
        resolved, tags={**resolved.tags, tag_keys.WEIGHTS_DIGEST: "sha256:" + "0" * 64}
    )
    original = versions.resolve
    monkeypatch.setattr(
        versions, "resolve", lambda uri: copied if uri == zoo.sources[1] else original(uri)
    )
    with (
        pytest.raises(errors.IntegrityError, match="were changed after they were registered"),
        workbench.opened(materials(zoo)),
    ):
        pass


def test_the_digest_is_of_weights_heads_and_images(zoo):
    with workbench.opened(materials(zoo)) as bench:
        digest = bench.digest("validation")
        assert digest != bench.digest("test")
    with workbench.opened(materials(zoo)) as bench:
        assert bench.digest("validation") == digest
    with workbench.opened(materials(zoo, sources=zoo.sources[:2])) as bench:
        assert bench.digest("validation") != digest


def test_a_task_file_that_is_missing_is_one_message(zoo):
    with (
        pytest.raises(errors.TaskError, match="can't be read"),
        workbench.opened(materials(zoo, tasks=str(Path("none.yaml")))),
    ):
        pass
