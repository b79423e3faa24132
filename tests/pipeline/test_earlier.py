"""Versions without a digest on record: each byte is read once, and what exists is found unread."""

import itertools
import posixpath

import mlflow
import pytest
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.audit import verify
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.pipeline import flow, inputs, merge_request
from mlflow_breadcrumbs.registry import registering, runs, tag_keys, versions
from mlflow_breadcrumbs.search import compare

transformers = pytest.importorskip("transformers")
berts = pytest.importorskip("berts")

pytestmark = pytest.mark.slow

BASE = "models:/bert/1"
SOURCES = ("models:/bert-1/1", "models:/bert-2/1")


def register(name, folder, seed):
    """A small BERT; without a seed the base, else a change of it."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(berts.config())
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    berts.register(name, model, folder)


@pytest.fixture
def in_store(store, object_store, tmp_path):
    """A small BERT and two fine-tunes of it in the object store, as MLflow's flavor logs them."""
    place = f"s3://models/{tmp_path.name}"
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("s3", artifact_location=place))
    for name, seed in (("bert", None), ("bert-1", 1), ("bert-2", 2)):
        register(name, tmp_path, seed)


@pytest.fixture
def fetched(in_store, monkeypatch):
    """What is read of weights in the store: the file, from where, to where."""
    found, read = [], stores.ObjectFolder.read

    def recording(folder, name, start, stop):
        if name.endswith(".safetensors"):
            found.append((f"{folder.address}/{name}", start, stop))
        return read(folder, name, start, stop)

    monkeypatch.setattr(stores.ObjectFolder, "read", recording)
    return found


@pytest.fixture
def downloads(in_store, monkeypatch):
    """The weights that are downloaded as files."""
    found, download = [], mlflow.artifacts.download_artifacts

    def recording(**arguments):
        if arguments["artifact_uri"].endswith(".safetensors"):
            found.append(arguments["artifact_uri"])
        return download(**arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", recording)
    return found


def request(**changes):
    settings = {"base": BASE, "sources": SOURCES, "registered_model": "merged", "device": "cpu"}
    settings["recipe"] = recipe.MergeRecipe.from_method("task_arithmetic", sources=2)
    return flow.MergeRequest(**(settings | changes))


def check_once(fetched, number):
    """That the tensors of so many files were read, each byte once; forgets what was read."""
    reads = sorted(fetched)
    places = [list(each) for _, each in itertools.groupby(reads, key=lambda read: read[0])]
    assert len(places) == number
    for read in places:
        folder, name = posixpath.split(read[0][0])
        folder = stores.ObjectFolder(folder)
        begin = 8 + int.from_bytes(folder.read(name, 0, 8), "little")
        data = [(start, stop) for _, start, stop in read if start >= begin]
        ends = [begin, *(stop for _, stop in data)]
        assert [start for start, _ in data] == ends[:-1]
        assert ends[-1] == folder.state(name).nbytes
    fetched.clear()


def test_each_byte_is_read_once(fetched, downloads, tmp_path):
    first = flow.merge(request())
    check_once(fetched, 3)
    again = flow.merge(request(alias="candidate"))
    assert (again.reused, again.version, fetched) == (True, first.version, [])
    assert versions.resolve("models:/merged@candidate").version == "1"
    other = recipe.MergeRecipe.from_method("ties", sources=2)
    second = flow.merge(request(recipe=other, work_folder=str(tmp_path / "work")))
    check_once(fetched, 3)
    assert (second.reused, second.version.version) == (False, "2")
    assert flow.merge(request(recipe=other)).version == second.version
    assert (fetched, downloads) == ([], [])
    for made in (first, second):
        stated = contents.read_statement(versions.resolve(made.version.uri))[1]
        for entry in stated.inputs:
            assert entry.weights_digest == contents.digest_of(versions.resolve(entry.uri))
        assert verify.verify(made.version.uri).ok


def test_the_same_weights_under_another_name_are_the_same_merge(fetched, downloads):
    """Which is known once they were read; the merge that exists gets the alias."""
    first = flow.merge(request())
    fetched.clear()
    mlflow.MlflowClient().copy_model_version(BASE, "copy")
    again = flow.merge(request(base="models:/copy/1", alias="candidate"))
    check_once(fetched, 3)
    assert (again.reused, again.version) == (True, first.version)
    assert versions.resolve("models:/merged@candidate").version == "1"
    assert len(registering.versions_of("merged", f"models:/{first.version.model_id}")) == 1
    assert downloads == []


class Stopped(KeyboardInterrupt):
    """What Ctrl-C raises."""


@pytest.fixture
def left(fetched, monkeypatch):
    """The model of a merge that was interrupted before it was registered."""

    def stop(*_, **__):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(registering, "register", stop)
        with pytest.raises(Stopped):
            flow.merge(request())
    fetched.clear()
    (model,) = mlflow.MlflowClient().search_logged_models(
        [runs.experiment_id()], filter_string="tags.`breadcrumbs.kind` = 'merge'"
    )
    return model


def test_a_stopped_merge_is_taken_up_without_reading_its_inputs(left, fetched):
    result = flow.merge(request())
    assert (result.version.model_id, result.reused) == (left.model_id, True)
    assert not any("/m-" in place and left.model_id not in place for place, *_ in fetched)


def test_a_merge_that_an_earlier_release_left_is_taken_up(left, fetched, tmp_path):
    """It had read the digests before it asked."""
    resolved = inputs.resolve(BASE, SOURCES)
    taken = inputs.open_all(resolved, tmp_path / "opened", lazily=True)
    digests = [contents.digest_of(entry) for entry in resolved]
    assert taken.known == (None, None, None)
    with pytest.raises(ValueError, match="before the bytes were read"):
        _ = taken.digests
    asked = merge_request.digest(request(), taken.read(digests), ())
    client = mlflow.MlflowClient()
    assert left.tags[tag_keys.REQUEST_DIGEST] == merge_request.digest(request(), taken, ())
    client.set_logged_model_tags(left.model_id, {tag_keys.REQUEST_DIGEST: asked})
    result = flow.merge(request(alias="candidate"))
    assert (result.version.model_id, result.reused) == (left.model_id, True)
    assert versions.resolve("models:/merged@candidate").version == "1"
    assert flow.merge(request()).version == result.version


def test_the_same_weights_twice_are_refused_once_they_were_read(in_store, tmp_path):
    client = mlflow.MlflowClient()
    client.copy_model_version(BASE, "copy")
    client.copy_model_version(SOURCES[0], "copy-1")
    with pytest.raises(errors.MergeError, match="copy/1 has exactly the weights of the base"):
        flow.merge(request(sources=(SOURCES[0], "models:/copy/1")))
    twins = (SOURCES[0], "models:/copy-1/1")
    with pytest.raises(errors.MergeError, match="have the same weights"):
        flow.merge(request(sources=twins))
    assert client.search_registered_models("name = 'merged'") == []
    (found,) = (f for f in compare.compare(BASE, twins).findings if f.kind == "refused")
    assert found.sources == twins
    assert not [f for f in compare.compare(BASE, SOURCES).findings if f.kind == "refused"]
