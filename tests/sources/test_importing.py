"""Checkpoints become versions, or are refused with the way out."""

import os
import pickle
import re
import subprocess
import sys

import mlflow
import open_clip
import pytest
import safetensors.torch
import tiny
import torch
import zoos

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.sources import importing


@pytest.fixture(scope="module")
def folder_of_store(tmp_path_factory, empty_database):
    return tiny.new_store(tmp_path_factory.mktemp("store"), empty_database)


@pytest.fixture
def store(folder_of_store, monkeypatch):
    monkeypatch.chdir(folder_of_store)
    previous = mlflow.get_tracking_uri()
    tiny.use_store(folder_of_store)
    yield folder_of_store
    zoos.use(previous)


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


@pytest.fixture
def model(config):
    return tiny.model(config)


def imported(checkpoint, tmp_path, content=tiny.MODEL, name="imported", **options):
    return importing.import_checkpoint(
        str(checkpoint),
        architecture_name=tiny.config_file(tmp_path, content),
        registered_model=name,
        device="cpu",
        **options,
    )


def convert(error, folder):
    """Run the code that a message suggests, as a user would: in the checkpoint's folder."""
    (code,) = re.findall(r"`([^`]*weights\.pt'\))`, and import weights\.pt", str(error))
    code = f"import torch; {code}"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def never_registered(name="imported"):
    found = mlflow.MlflowClient().search_registered_models(f"name = '{name}'")
    return not found


def test_safetensors(store, tmp_path, model):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    version = imported(path, tmp_path, name="plain")
    assert version.uri == "models:/plain/1"
    assert version.weights_digest == checkpoints.weights_digest(path)
    found = mlflow.MlflowClient().get_model_version("plain", "1")
    assert found.tags["breadcrumbs.weights_digest"] == version.weights_digest
    assert "breadcrumbs.task" not in found.tags
    loaded = flavor.load_model(version.uri)
    assert checkpoints.state_dict_digest(loaded.model.state_dict()) == version.weights_digest
    outputs = mlflow.MlflowClient().get_run(version.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [version.model_id]


@pytest.mark.parametrize("form", ["bare", "wrapped", "module.", "model."])
def test_pt_files_of_tensors(store, tmp_path, model, form):
    content = dict(model.state_dict())
    if form.endswith("."):
        content = {f"{form}{name}": tensor for name, tensor in content.items()}
    if form != "bare":
        content = {"epoch": 3, "state_dict": content, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "weights.pt")
    version = imported(tmp_path / "weights.pt", tmp_path, name=f"pt-{form.strip('.')}")
    assert version.weights_digest == checkpoints.state_dict_digest(model.state_dict())


def test_lower_precision_is_kept(store, tmp_path, model):
    torch.save(model.bfloat16().state_dict(), tmp_path / "weights.pt")
    version = imported(tmp_path / "weights.pt", tmp_path, name="half")
    loaded = flavor.load_model(version.uri).model
    assert version.weights_digest == checkpoints.state_dict_digest(model.state_dict())
    assert next(loaded.parameters()).dtype == torch.float32


def test_tasks_get_heads_and_tags(store, tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    pets = tasks.Task("pets", declared_classes=("cat", "dog"))
    found = (*tasks.load_tasks(tiny.task_file(tmp_path)), pets)
    both = imported(tmp_path / "weights.pt", tmp_path, name="both", task_list=found)
    one = imported(tmp_path / "weights.pt", tmp_path, name="one", task_list=found, task="pets")
    tag = imported(tmp_path / "weights.pt", tmp_path, name="tag", task="cars")
    client = mlflow.MlflowClient()
    tagged = {
        v.name: client.get_model_version(v.name, "1").tags["breadcrumbs.task"]
        for v in (both, one, tag)
    }
    assert tagged == {"both": "colours,pets", "one": "pets", "tag": "cars"}
    loaded = flavor.load_model(both.uri).heads
    assert {task: head.kind for task, head in loaded.items()} == {
        "colours": "zero-shot",
        "pets": "zero-shot",
    }
    assert list(flavor.load_model(one.uri).heads) == ["pets"]
    assert flavor.load_model(tag.uri).heads == {}
    with pytest.raises(errors.TaskError, match=r"no task 'cars' .* has colours, pets"):
        imported(tmp_path / "weights.pt", tmp_path, task_list=found, task="cars")


def test_heads_by_probe_and_from_a_file(store, tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    found = tasks.load_tasks(tiny.task_file(tmp_path))
    probe = imported(tmp_path / "weights.pt", tmp_path, name="probe", task_list=found, head="probe")
    assert flavor.load_model(probe.uri).heads["colours"].kind == "probe"
    path = tmp_path / "head.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(3, 12)}, path)
    file = imported(tmp_path / "weights.pt", tmp_path, name="file", task_list=found, head=str(path))
    assert torch.equal(flavor.load_model(file.uri).heads["colours"].weight, torch.ones(3, 12))


def test_heads_that_can_not_be_made(store, tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    found = tasks.load_tasks(tiny.task_file(tmp_path))
    weights = tmp_path / "weights.pt"
    with pytest.raises(errors.TaskError, match=r"has no text tower.*Use `--head probe`"):
        imported(weights, tmp_path, tiny.IMAGE_ONLY, task_list=found, head="zero-shot")
    with pytest.raises(errors.TaskError, match=r"`--head probe` needs `--tasks FILE`"):
        imported(weights, tmp_path, head="probe")
    with pytest.raises(errors.TaskError, match="'nowhere' is no head: give auto, zero-shot, probe"):
        imported(weights, tmp_path, task_list=found, head="nowhere")
    with pytest.raises(errors.TaskError, match=r"is for one task, but there are 2"):
        imported(weights, tmp_path, task_list=found * 2, head="nowhere")


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_an_image_only_backbone(store, tmp_path, prefix):
    config = tiny.config(tmp_path, tiny.IMAGE_ONLY)
    visual = tiny.model(config).visual.state_dict()
    path = tmp_path / "visual.safetensors"
    safetensors.torch.save_file({f"{prefix}{name}": t for name, t in visual.items()}, path)
    found = tasks.load_tasks(tiny.task_file(tmp_path))
    name = f"image-only-{prefix.strip('.')}"
    version = imported(path, tmp_path, tiny.IMAGE_ONLY, name=name, task_list=found)
    loaded = flavor.load_model(version.uri)
    assert loaded.heads["colours"].kind == "probe"
    for key, tensor in loaded.model.state_dict().items():
        if key.startswith("visual."):
            assert torch.equal(tensor, visual[key.removeprefix("visual.")])
        else:
            assert not tensor.any(), "the placeholder is zeros in every version"
    folder = mlflow.artifacts.download_artifacts(version.uri)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert checkpoints.state_dict_digest(theirs.state_dict()) == version.weights_digest


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_with_a_payload_is_refused(store, tmp_path):
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(
        errors.CheckpointError,
        match=r"bad\.pt' is refused: it is a pickle that would run code .* \(posix\.mkdir\)",
    ):
        imported(tmp_path / "bad.pt", tmp_path)
    with (tmp_path / "plain.bin").open("wb") as file:
        pickle.dump({"weight": Payload(tmp_path / "ran")}, file)
    with pytest.raises(errors.CheckpointError, match=r"plain\.bin' (is refused|can't be read)"):
        imported(tmp_path / "plain.bin", tmp_path)
    assert not (tmp_path / "ran").exists()
    assert never_registered()


def test_a_whole_pickled_module_is_refused_with_the_way_out(store, tmp_path, model):
    torch.save(model, tmp_path / "module.pt")
    with pytest.raises(errors.CheckpointError) as caught:
        imported(tmp_path / "module.pt", tmp_path)
    assert "would run code when loaded (open_clip.model.CLIP)" in str(caught.value)
    convert(caught.value, tmp_path)
    assert imported(tmp_path / "weights.pt", tmp_path, name="converted").version == "1"


def test_a_pickle_renamed_safetensors_is_refused(store, tmp_path, model):
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "renamed.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"renamed\.safetensors"):
        imported(tmp_path / "renamed.safetensors", tmp_path)
    assert not (tmp_path / "ran").exists()
    assert never_registered()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_files(store, tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=r"can't be read as a checkpoint: it is damag"):
        imported(tmp_path / "bad.pt", tmp_path)


def test_files_of_something_else(store, tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(errors.CheckpointError, match=r"holds list, not a mapping"):
        imported(tmp_path / "list.pt", tmp_path)
    torch.save({"a": torch.ones(1), "lr": 0.1}, tmp_path / "more.pt")
    with pytest.raises(errors.CheckpointError, match="holds more than tensors: lr"):
        imported(tmp_path / "more.pt", tmp_path)
    with pytest.raises(errors.CheckpointError, match="There is no checkpoint"):
        imported(tmp_path / "absent.pt", tmp_path)


def test_another_architectures_tensors_are_listed(store, tmp_path, model):
    content = dict(model.state_dict())
    del content["visual.proj"], content["ln_final.bias"]
    content["extra"] = torch.ones(1)
    content["visual.conv1.weight"] = torch.ones(16, 3, 4, 4)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(errors.CheckpointError) as caught:
        imported(tmp_path / "other.pt", tmp_path)
    assert (
        "is not a checkpoint of the architecture 'tiny'. missing: ln_final.bias, visual.proj; "
        "extra: extra; mismatching: visual.conv1.weight (float32 [16, 3, 4, 4], not float32 "
        "[16, 3, 8, 8]). Give the architecture that it was trained with."
    ) in str(caught.value)
    assert never_registered()


@pytest.mark.parametrize("name", ["a/b", "a:b", ""])
def test_impossible_names_are_refused_before_any_work(store, tmp_path, name):
    with pytest.raises(errors.RegistryError, match="can't name a registered model"):
        imported(tmp_path / "absent.pt", tmp_path, name=name)


def test_an_impossible_task_name(store, tmp_path):
    with pytest.raises(errors.TaskError, match="'a b' can't name a task"):
        imported(tmp_path / "absent.pt", tmp_path, task="a b")


def test_an_unknown_tag(store):
    with pytest.raises(errors.ArchitectureError, match="no weights 'opena' for ViT-B-32"):
        importing.import_checkpoint(
            "opena", architecture_name="ViT-B-32", registered_model="x", device="cpu"
        )
