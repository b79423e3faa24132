"""Merges of versions whose weights are in an object store, or come through the tracking server."""

import json
import math
from pathlib import Path

import merging_anything
import mlflow
import pytest
import torch
import zoos
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import bundles, files, recipe
from mlflow_breadcrumbs.registry import versions

RECIPE = ["--density", 0.3, "--gamma", 0.01, "--alpha", 0.4]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [*map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def merge(zoo, name, *more):
    sources = [word for uri in zoo.sources[:2] for word in ("--source", uri)]
    words = ["merge", "--base", zoo.base, *sources, "--registered-model", name, *RECIPE]
    return json.loads(run(*words, *more, "--json").stdout)


def expected(zoo, folder):
    """The digest of the same merge of the files that were imported."""
    paths = [zoo.folder / f"{name}.safetensors" for name in ("base", *list(zoos.TASKS)[:2])]
    made = recipe.MergeRecipe(density=0.3, gamma=0.01, alpha=0.4)
    return files.merge_files(
        paths[0], paths[1:], made, folder / "expected.safetensors"
    ).weights_digest


@pytest.fixture
def downloads(monkeypatch):
    """The weights that are downloaded as files."""
    found, download = [], mlflow.artifacts.download_artifacts

    def recording(**arguments):
        if arguments["artifact_uri"].endswith("model.safetensors"):
            found.append(arguments["artifact_uri"])
        return download(**arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", recording)
    return found


@pytest.fixture(scope="module")
def in_bucket(bucket, tmp_path_factory, empty_database):
    """The zoo on a server whose artifacts are in the object store, where clients go themselves."""
    folder = tmp_path_factory.mktemp("bucket-server")
    more = ["--no-serve-artifacts", "--default-artifact-root", "s3://models/mlflow"]
    with (
        pytest.MonkeyPatch.context() as patch,
        zoos.serving(folder, empty_database, *more) as uri,
    ):
        for key, value in bucket.variables.items():
            patch.setenv(key, value)
        own = tmp_path_factory.mktemp("bucket-zoo")
        with zoos.working_in(own, uri), zoos.installed():
            yield zoos.fill(own, uri)


@pytest.mark.slow
def test_weights_in_an_object_store_are_read_there(in_bucket, object_store, downloads, tmp_path):
    zoo = in_bucket
    assert versions.resolve(zoo.base).location.startswith("s3://models/mlflow/")
    made = merge(zoo, "read-there", "--tasks", "none")
    assert downloads == []
    assert made["weights_digest"] == expected(zoo, tmp_path)
    run("verify", made["uri"])
    evaluated = merge(zoo, "evaluated", "--tasks", zoo.tasks)
    assert evaluated["weights_digest"] == made["weights_digest"]
    assert evaluated["metrics"]["average_accuracy"] >= 0
    assert len(set(downloads)) >= 3, "what is evaluated has to be here"


@pytest.mark.slow
def test_workers_read_the_object_store_themselves(in_bucket, object_store, downloads, tmp_path):
    """Planned with MLflow, done without it, ended with it."""
    zoo, work = in_bucket, tmp_path / "work"
    more = ["--tasks", "none", "--work-folder", work]
    plan = merge(zoo, "by-workers", *more, "--plan-only")
    content = json.loads(Path(plan["plan"]).read_text())
    assert content["base"]["path"].startswith("s3://models/mlflow/")
    refused = run("finish", plan["plan"], code=2)
    assert "this merge is ended by `merge`, which registers it" in refused.output
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # workers need none
        run("work", plan["plan"], "--missing")
    done = {path: path.stat().st_mtime_ns for path in work.rglob("*-*.safetensors")}
    assert done
    made = merge(zoo, "by-workers", *more)
    assert made["weights_digest"] == expected(zoo, tmp_path)
    assert not made["reused"]
    assert downloads == []
    assert list(work.iterdir()) == [], "nothing is left of it"
    assert merge(zoo, "by-workers", *more)["reused"]


@pytest.mark.slow
def test_workers_read_an_adapter_in_the_object_store(store, object_store, tmp_path):
    """A registered one, of a base that is there too."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    berts = pytest.importorskip("berts")
    place = f"s3://models/{tmp_path.name}"
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("s3", artifact_location=place))
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(berts.config())
    model.save_pretrained(tmp_path / "base")
    berts.register("bert", model, tmp_path)
    for number in (1, 2):
        model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["query"]))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        tuned.save_pretrained(tmp_path / f"lora-{number}")
        berts.register(f"lora-{number}", tuned, tmp_path)
    words = ["merge", "--base", "bert/1", "--source", "lora-1/1", "--source", "lora-2/1"]
    words += ["--registered-model", "merged", *RECIPE, "--work-folder", tmp_path / "work", "--json"]
    plan = json.loads(run(*words, "--plan-only").stdout)["plan"]
    paths = [source["path"] for source in json.loads(Path(plan).read_text())["sources"]]
    assert all(path.startswith(place) and "/peft/adapter_model" in path for path in paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # workers need none
        run("work", plan, "--missing")
    made = json.loads(run(*words).stdout)
    folders = [tmp_path / f"lora-{number}" for number in (1, 2)]
    same = recipe.MergeRecipe(density=0.3, gamma=0.01, alpha=0.4)
    whole = files.merge_files(tmp_path / "base", folders, same, tmp_path / "e.safetensors")
    assert made["weights_digest"] == whole.weights_digest
    assert not made["reused"]


def test_weights_that_a_server_hands_on_are_streamed(on_server, downloads, tmp_path):
    zoo = on_server
    mlflow.set_experiment("streamed")
    assert versions.resolve(zoo.base).location.startswith("mlflow-artifacts:")
    made = merge(zoo, "streamed", "--tasks", "none")
    assert made["weights_digest"] == expected(zoo, tmp_path)
    assert downloads == []
    words = ["--tasks", "none", "--work-folder", tmp_path / "work", "--plan-only", "--force"]
    sources = [word for uri in zoo.sources[:2] for word in ("--source", uri)]
    refused = run(
        "merge", "--base", zoo.base, *sources, "--registered-model", "x", *RECIPE, *words, code=1
    )
    assert "come through the tracking server, and workers read a disk" in refused.output


def several(folder, name, seed):
    """A version with two checkpoints, registered as a folder; and the location of both here."""
    (folder / name / "2_Dense").mkdir(parents=True)
    paths = [f"{folder / name}/{place}model.safetensors" for place in ("", "2_Dense/")]
    for path, shape in zip(paths, ((16, 8), (4, 16)), strict=True):
        base = {"linear.weight": torch.arange(float(math.prod(shape))).reshape(shape)}
        save_file(merging_anything.shift(base, seed), path)
    return merging_anything.register(folder / name), bundles.of(paths).location


@pytest.mark.slow
@pytest.mark.parametrize("place", ["in_bucket", "on_server"])
def test_several_checkpoints_of_a_version_are_read_where_they_are(
    place, request, downloads, tmp_path
):
    if place == "in_bucket":
        request.getfixturevalue("object_store")
    request.getfixturevalue(place)
    mlflow.set_experiment(f"several {place}")
    found = [several(tmp_path, f"{place}-{number}", number) for number in range(3)]
    (base, *sources), (first, *others) = zip(*found, strict=True)
    words = ["merge", "--base", base, "--registered-model", f"{place}-merged", *RECIPE]
    words += [word for uri in sources for word in ("--source", uri)]
    assert json.loads(run(*words, "--dry-run", "--json").stdout)["files"] == 1
    made = json.loads(run(*words, "--tasks", "none", "--json").stdout)
    assert downloads == []
    here = files.merge_files(
        first,
        others,
        recipe.MergeRecipe(density=0.3, gamma=0.01, alpha=0.4),
        tmp_path / "expected.safetensors",
    )
    assert made["weights_digest"] == here.weights_digest
    run("verify", made["uri"])


def test_a_stopped_merge_goes_on_in_its_work_folder(zoo, tmp_path, monkeypatch):
    """The output was whole, the version was not registered."""
    from mlflow_breadcrumbs.engine.shards import working
    from mlflow_breadcrumbs.pipeline import registration

    more = ["--tasks", "none", "--work-folder", tmp_path / "work"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registration, "register", stop)
        sources = [word for uri in zoo.sources[:2] for word in ("--source", uri)]
        words = ["merge", "--base", zoo.base, *sources, "--registered-model", "on", *RECIPE, *more]
        stopped = CliRunner().invoke(cli.main, [*map(str, words)])
        assert stopped.exit_code != 0
    assert list((tmp_path / "work").glob("merge-*/open_clip_model.safetensors"))
    monkeypatch.setattr(working, "work_on", stop)  # nothing is computed again
    made = merge(zoo, "on", *more)
    assert made["weights_digest"] == expected(zoo, tmp_path)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_shard_that_was_damaged_is_done_again(zoo, tmp_path):
    """It has the size that its worker says; what is registered is what the digest says."""
    more = ["--tasks", "none", "--work-folder", tmp_path / "work"]
    plan = merge(zoo, "damaged", *more, "--plan-only")["plan"]
    run("work", plan, "--missing")
    (shard,) = (tmp_path / "work").rglob("open_clip_model-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    made = merge(zoo, "damaged", *more)
    assert made["weights_digest"] == expected(zoo, tmp_path)
    run("verify", made["uri"])


def test_options_that_do_not_go_together(zoo, tmp_path):
    words = ["merge", "--base", zoo.base, "--source", zoo.sources[0], "--registered-model", "x"]
    refused = run(*words, *RECIPE, "--tasks", "none", "--plan-only", code=2)
    assert "--plan-only needs a --work-folder" in refused.output
    refused = run(*words, *RECIPE, "--tasks", "none", "--max-shard-size", "5GB", code=1)
    assert "--max-shard-size is of no use here: models:/tiny/1 is an open" in refused.output
    for other in (["--plan-only", "--work-folder", tmp_path / "work"], ["--choose"]):
        refused = run(*words, "--tasks", "none", "--dry-run", *other, code=2)
        assert "--dry-run goes with neither --plan-only" in refused.output
    assert not (tmp_path / "work").exists()
    address = ["--tasks", "none", "--work-folder", "s3://models/work"]
    refused = run(*words, *RECIPE, *address, code=1)
    assert "the work folder s3://models/work is an address" in refused.output
    (tmp_path / "file").touch()
    refused = run(*words, *RECIPE, "--tasks", "none", "--work-folder", tmp_path / "file", code=1)
    assert "cannot make the folder" in refused.output


def test_a_dry_run_says_what_it_takes_and_does_nothing(zoo, tmp_path):
    words = ["merge", "--base", zoo.base, "--source", zoo.sources[0], "--registered-model", "dry"]
    said = run(*words, *RECIPE, "--tasks", "none", "--dry-run").stdout
    for word in ("to read:", "to write:", "temporary files: none", "memory:", "time:"):
        assert word in said
    found = json.loads(run(*words, *RECIPE, "--tasks", "none", "--dry-run", "--json").stdout)
    assert found["files"] == 1
    assert found["bytes_read"] > found["bytes_written"] > 0
    assert mlflow.MlflowClient().search_model_versions("name = 'dry'") == []
    paths = [zoo.folder / f"{name}.safetensors" for name in ("base", next(iter(zoos.TASKS)))]
    output = tmp_path / "out.safetensors"
    words = ["merge-files", "--base", paths[0], "--source", paths[1], "--output", output]
    assert json.loads(run(*words, *RECIPE, "--dry-run", "--json").stdout)["files"] == 1
    assert not output.exists()


@pytest.mark.slow
def test_workers_of_ray_do_the_shards_of_a_registered_merge(zoo, ray_address, tmp_path):
    ray = ["--executor", "ray", "--ray-address", ray_address, "--workers", "2"]
    sources = [word for uri in zoo.sources[:2] for word in ("--source", uri)]
    words = ["merge", "--base", zoo.base, *sources, "--registered-model", "by-ray", *RECIPE]
    refused = run(*words, "--tasks", "none", *ray, code=2)
    assert "--executor ray needs a --work-folder" in refused.output
    work = ["--work-folder", tmp_path / "work"]
    refused = run(*words, "--tasks", "none", *ray, *work, "--keep-parts", code=1)
    assert "is done in one process; leave --executor out, or --keep-parts" in refused.output
    made = merge(zoo, "by-ray", "--tasks", "none", *ray, *work)
    assert made["weights_digest"] == expected(zoo, tmp_path)
    assert list((tmp_path / "work").iterdir()) == []
