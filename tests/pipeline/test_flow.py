"""The main flow on real stores: what a merge registers, and what stops it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, files, recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.sources import importing
from mlflow_breadcrumbs.support import canonical

RECIPE = recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=1.0)


def request(zoo, **changes):
    settings = {
        "base": zoo.base,
        "sources": zoo.sources,
        "registered_model": "merged",
        "recipe": RECIPE,
        "tasks": zoo.tasks,
        "device": "cpu",
    }
    return flow.MergeRequest(**(settings | changes))


def version(name, number):
    return mlflow.MlflowClient().get_model_version(name, number)


def versions_of(name):
    return mlflow.MlflowClient().search_model_versions(f"name = '{name}'")


def test_a_merge_is_registered_with_all_that_the_contract_names(zoo):
    result = flow.merge(request(zoo, alias="candidate"))
    made = result.to_dict()
    made.pop("warnings", None)  # of a task that the tiny model is no good at
    assert list(made) == [
        "name",
        "version",
        "uri",
        "run_id",
        "recipe_digest",
        "weights_digest",
        "reused",
        "metrics",
    ]
    assert (made["uri"], made["reused"]) == ("models:/merged/1", False)
    client = mlflow.MlflowClient()
    found = client.get_model_version_by_alias("merged", "candidate")
    assert str(found.version) == made["version"]

    tags = found.tags
    assert tags["breadcrumbs.recipe_digest"] == RECIPE.digest
    assert tags["breadcrumbs.weights_digest"] == made["weights_digest"]
    assert tags["breadcrumbs.base"] == zoo.base
    assert json.loads(tags["breadcrumbs.sources"]) == list(zoo.sources)
    assert tags["breadcrumbs.task"] == "colours,tints,hues"
    for source in zoo.sources:
        digest = versions.resolve(source).recorded_digest
        key = tag_keys.of_source(digest)
        assert tags[key] == source
        (hit,) = client.search_model_versions(f"tags.`{key}` = '{source}'")
        assert hit.name == "merged"

    run = client.get_run(made["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "density": "0.14",
        "gamma": "0.01",
        "alpha": "1.0",
        "weights": "[]",
        "unit": "tensor",
        "consensus": "none",
        "combine": "sum",
        "include": '["*"]',
        "exclude": "[]",
        "dtype": "base",
        "base": zoo.base,
        **{f"source.{i}": uri for i, uri in enumerate(zoo.sources)},
        "registered_model": "merged",
        "tasks": zoo.tasks,
        "alias": "candidate",
    }
    everything = [versions.resolve(uri).model_id for uri in (zoo.base, *zoo.sources)]
    assert {entry.model_id for entry in run.inputs.model_inputs} == set(everything)
    (output,) = run.outputs.model_outputs
    assert found.source == f"models:/{output.model_id}"
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        "colours/test",
        "tints/test",
        "hues/test",
    }
    names = {entry.path for entry in client.list_artifacts(made["run_id"])}
    assert names == {
        "recipe.json",
        "masks.csv",
        "evaluation.csv",
        "evaluation.json",
        "evaluation.png",
    }

    metrics = made["metrics"]
    for task in ("colours", "tints", "hues"):
        assert metrics[f"normalized_accuracy/{task}"] == pytest.approx(
            metrics[f"accuracy/{task}"] / metrics[f"finetuned_accuracy/{task}"]
        )
        assert 0 <= metrics[f"zero_shot_accuracy/{task}"] <= 1
    assert metrics["average_accuracy"] == pytest.approx(
        sum(metrics[f"accuracy/{task}"] for task in ("colours", "tints", "hues")) / 3
    )
    assert metrics.items() <= run.data.metrics.items()
    assert sum(run.data.metrics[f"touched_by/{n}"] for n in range(4)) == pytest.approx(1)


def test_the_merged_artifact_is_open_clips_own_layout_with_lineage(zoo, tmp_path):
    result = flow.merge(request(zoo))
    folder = Path(mlflow.artifacts.download_artifacts(result.version.uri, dst_path=str(tmp_path)))
    weights = load_file(folder / "open_clip_model.safetensors")
    assert checkpoints.state_dict_digest(weights) == result.version.weights_digest
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {path.name for path in (folder / "tasks").iterdir()} == {
        f"{task}.{suffix}"
        for task in ("colours", "tints", "hues")
        for suffix in ("json", "safetensors")
    }

    raw = (folder / "lineage.json").read_bytes()
    assert version("merged", "1").tags["breadcrumbs.lineage_digest"] == canonical.sha256(raw)
    lineage = json.loads(raw)
    assert lineage["_type"] == "https://in-toto.io/Statement/v1"
    assert lineage["predicateType"] == "https://slsa.dev/provenance/v1"
    (subject,) = lineage["subject"]
    file_digest = checkpoints.file_digest(folder / subject["name"])
    assert f"sha256:{subject['digest']['sha256']}" == file_digest
    assert f"sha256:{subject['digest']['weightsSha256']}" == result.version.weights_digest
    definition = lineage["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["recipe"] == RECIPE.to_dict()
    entries = [d for d in definition["resolvedDependencies"] if d["annotations"]["role"] != "code"]
    assert [entry["uri"] for entry in entries] == [zoo.base, *zoo.sources]
    for entry in entries:
        recorded = versions.resolve(entry["uri"]).recorded_digest
        assert f"sha256:{entry['digest']['weightsSha256']}" == recorded
    products = lineage["predicate"]["runDetails"]["byproducts"]
    assert [product["name"] for product in products[1:]] == [
        "evaluation/colours",
        "evaluation/tints",
        "evaluation/hues",
    ]


def test_the_engine_alone_gives_the_same_bits(zoo, tmp_path):
    result = flow.merge(request(zoo, tasks=None))
    assert result.metrics == {}
    names = ("base", "colours", "tints", "hues")
    base, *sources = (zoo.folder / f"{name}.safetensors" for name in names)
    alone = files.merge_files(base, sources, RECIPE, tmp_path / "out.safetensors")
    assert alone.weights_digest == result.version.weights_digest


def test_the_same_merge_is_found_not_repeated(zoo):
    first = flow.merge(request(zoo))
    again = flow.merge(request(zoo, alias="candidate"))
    assert again.reused
    assert again.version == first.version
    assert again.metrics.items() >= first.metrics.items()
    assert again.rows() == first.rows()
    assert version("merged", "1").aliases == ["candidate"]
    forced = flow.merge(request(zoo, force=True))
    assert (forced.version.version, forced.reused) == ("2", False)
    assert forced.version.weights_digest == first.version.weights_digest
    other = flow.merge(request(zoo, sources=zoo.sources[::-1]))
    assert other.version.version == "3"


def test_an_alias_is_resolved_once(zoo):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("tiny-colours", "best", "1")
    sources = ("models:/tiny-colours@best", *zoo.sources[1:])
    result = flow.merge(request(zoo, sources=sources, tasks=None))
    tags = version("merged", result.version.version).tags
    assert json.loads(tags["breadcrumbs.sources"]) == list(zoo.sources)


def test_a_version_can_be_deleted_while_it_is_merged(zoo):
    """Resolved is pinned: the bytes are read from where they were, and the lineage names them."""
    from mlflow_breadcrumbs.support import progress

    def deletes(description, *, total, unit=""):
        if description == "merge":
            mlflow.MlflowClient().delete_model_version("tiny-tints", "1")
        return progress.silent(description, total=total, unit=unit)

    result = flow.merge(request(zoo), deletes)
    tags = version("merged", result.version.version).tags
    assert zoo.sources[1] in json.loads(tags["breadcrumbs.sources"])


def cli(*arguments, **environment):
    command = [sys.executable, "-m", "mlflow_breadcrumbs", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def arguments(zoo, *more):
    listed = [part for source in zoo.sources for part in ("--source", source)]
    fixed = ["--base", zoo.base, *listed, "--registered-model", "merged", "--alpha", "1"]
    return ("merge", *fixed, "--json", *more)


def test_a_fresh_process_without_pickles_gives_the_same_digest(zoo):
    here = flow.merge(request(zoo))
    there = cli(
        *arguments(zoo, "--force", "--tasks", zoo.tasks),
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )
    assert there["weights_digest"] == here.version.weights_digest
    assert there["metrics"] == here.metrics
    assert there["version"] == "2"


@pytest.mark.slow
def test_a_tracking_server_gives_the_same_digest(filled, on_server, tmp_path):
    """Everything over HTTP, the artifacts too: nothing of the store is on this machine's disk."""
    mlflow.set_experiment("over-http")
    result = flow.merge(request(on_server, alias="candidate"))
    again = cli(*arguments(on_server))
    assert again["reused"]
    names = ("base", "colours", "tints", "hues")
    base, *sources = (filled.folder / f"{name}.safetensors" for name in names)
    alone = files.merge_files(base, sources, RECIPE, tmp_path / "out.safetensors")
    assert result.version.weights_digest == again["weights_digest"] == alone.weights_digest
    assert not (tmp_path / "mlruns").exists()


# What stops a merge, and leaves nothing.


def refused(zoo, error, words, **changes):
    with pytest.raises(error, match=words):
        flow.merge(request(zoo, **changes))
    assert not versions_of("merged")


def test_no_sources(zoo):
    refused(zoo, errors.MergeError, r"there are no sources; .*--source", sources=())


def test_the_base_among_the_sources(zoo):
    words = "the source models:/tiny/1 is the base itself"
    refused(zoo, errors.MergeError, words, sources=(zoo.base, zoo.sources[0]))


def test_a_source_twice(zoo):
    mlflow.MlflowClient().set_registered_model_alias("tiny-colours", "best", "1")
    words = r"models:/tiny-colours/1 and models:/tiny-colours@best are the same version"
    sources = (zoo.sources[0], "models:/tiny-colours@best")
    refused(zoo, errors.MergeError, words, sources=sources)


def reimport(zoo, name, checkpoint, task="colours"):
    return importing.import_checkpoint(
        str(checkpoint),
        architecture_name=zoo.architecture,
        registered_model=name,
        task=task,
        task_list=tasks.load_tasks(zoo.tasks),
        head=str(zoo.folder / f"{task}.head.safetensors"),
    ).uri


def test_two_versions_with_the_same_weights(zoo):
    twin = reimport(zoo, "twin", zoo.folder / "colours.safetensors")
    words = r"models:/tiny-colours/1 and models:/twin/1 have the same weights \(sha256:"
    refused(zoo, errors.MergeError, words, sources=(zoo.sources[0], twin))


def test_a_source_with_the_weights_of_the_base(zoo):
    twin = reimport(zoo, "twin", zoo.folder / "base.safetensors")
    words = r"models:/twin/1 has exactly the weights of the base models:/tiny/1"
    refused(zoo, errors.MergeError, words, sources=(*zoo.sources, twin))


def test_two_heads_for_one_task(zoo, tmp_path):
    weight = load_file(zoo.folder / "colours.head.safetensors")["weight"]
    save_file({"weight": weight + 1}, tmp_path / "other.safetensors")
    other = importing.import_checkpoint(
        str(zoo.folder / "tints.safetensors"),
        architecture_name=zoo.architecture,
        registered_model="other",
        task="colours",
        task_list=tasks.load_tasks(zoo.tasks),
        head=str(tmp_path / "other.safetensors"),
    )
    words = "both carry the task 'colours', with different heads"
    refused(zoo, errors.MergeError, words, sources=(zoo.sources[0], other.uri))


def test_a_task_that_the_file_lacks(zoo, tmp_path):
    text = Path(zoo.tasks).read_text()
    file = tmp_path / "tasks.yaml"
    file.write_text(text.replace("name: tints", "name: tones"))
    words = r"models:/tiny-tints/1 is fine-tuned for the task 'tints', which the task file"
    refused(zoo, errors.TaskError, words, tasks=str(file))


def test_classes_in_another_order_than_the_head(zoo, tmp_path):
    file = tmp_path / "tasks.yaml"
    text = Path(zoo.tasks).read_text()
    file.write_text(text.replace("[red, green, blue]", "[green, red, blue]"))
    refused(zoo, errors.TaskError, "are in another order", tasks=str(file))


def test_an_unreadable_image_fails_the_run_and_registers_nothing(zoo, tmp_path):
    shutil.copytree(zoo.folder / "images", tmp_path / "images")
    for path in (tmp_path / "images" / "red").iterdir():
        path.write_bytes(b"not an image")
    file = tmp_path / "tasks.yaml"
    file.write_text(Path(zoo.tasks).read_text().replace(str(zoo.folder), str(tmp_path)))
    refused(zoo, errors.TaskError, r"red/\d\.png", tasks=str(file))


def test_a_source_without_a_head_cannot_be_evaluated(zoo):
    bare = importing.import_checkpoint(
        str(zoo.folder / "colours.safetensors"),
        architecture_name=zoo.architecture,
        registered_model="bare",
    )
    refused(zoo, errors.TaskError, "models:/bare/1 carries no task head", sources=(bare.uri,))


def test_another_architecture(zoo, tmp_path):
    state = load_file(zoo.folder / "colours.safetensors")
    del state["visual.proj"]
    state["more"] = torch.ones(2)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "MLmodel").write_text("flavors: {other: {}}\n")
    client = mlflow.MlflowClient()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(folder))
    with pytest.raises(errors.MergeError) as caught:
        flow.merge(request(zoo, sources=("models:/foreign/1",), tasks=None))
    assert "models:/foreign/1: missing: visual.proj" in str(caught.value)
    assert "models:/foreign/1: extra: more" in str(caught.value)
    assert not versions_of("merged")
    (run,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'merge'",
        output_format="list",
    )
    assert run.info.status == "FAILED"


def test_bytes_that_were_overwritten(filled, store, tmp_path):
    import zoos

    zoo = zoos.fill(tmp_path, store)
    location = versions.resolve(zoo.sources[0]).location
    weights = Path(location.removeprefix("file://")) / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    words = (
        r"the weights of models:/tiny-colours/1 have the digest .* was expected: they were changed"
    )
    refused(zoo, errors.IntegrityError, words)
    weights.unlink()
    refused(zoo, errors.RegistryError, r"models:/tiny-colours/1 was logged by .* no safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/b", "'a/b' can't name a registered model: 1 to 256 characters, without '/' and ':'"),
        ("a:b", "can't name a registered model"),
        ("  ", "can't name a registered model"),
        ("x" * 257, "can't name a registered model"),
    ],
)
def test_names_that_mlflow_refuses(zoo, name, words):
    refused(zoo, errors.RegistryError, words, registered_model=name)


@pytest.mark.parametrize("name", ["with space", "größe ✓", "100%", "a%20b", "q?x=1", "it's"])
def test_names_that_look_odd_work_throughout(zoo, name):
    result = flow.merge(request(zoo, registered_model=name, tasks=None))
    assert versions.resolve(f"models:/{name}/1").recorded_digest == result.version.weights_digest
    assert flow.merge(request(zoo, registered_model=name, tasks=None)).reused
    onward = request(zoo, sources=(f"models:/{name}/1", zoo.sources[0]), tasks=None)
    assert flow.merge(onward).version.uri == "models:/merged/1"


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "a/b", ""])
def test_aliases_that_mlflow_refuses(zoo, alias):
    refused(zoo, errors.RegistryError, "can't be an alias", alias=alias)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_and_absent(zoo):
    refused(zoo, errors.DeviceError, "finds no CUDA device", device="cuda")


def test_a_version_that_is_not_ready(zoo):
    database = zoo.tracking_uri.removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE model_versions SET status = 'PENDING_REGISTRATION' WHERE name = 'tiny-hues'"
        )
    words = r"version 1 of 'tiny-hues', whose status is PENDING_REGISTRATION; wait"
    refused(zoo, errors.RegistryError, words)


def test_base_and_sources_are_measured_once_for_many_merges(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_CACHE", str(tmp_path / "cache"))

    def entries():
        return len(list((tmp_path / "cache").rglob("*.json")))

    first = flow.merge(request(zoo))
    assert entries() == 9  # base, source and merged model on three tasks
    again = flow.merge(request(zoo, force=True))
    assert entries() == 9
    assert again.metrics == first.metrics
    other = recipe.MergeRecipe.from_method("task_arithmetic", sources=3)
    changed = flow.merge(request(zoo, recipe=other, cache=False))
    assert entries() == 9
    assert flow.merge(request(zoo, recipe=other, force=True)).metrics == changed.metrics
    assert entries() == 12
