"""A registered base and a task become a registered source."""

import mlflow
import pytest
import tiny
import torch
import zoos

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.models import task_heads, tasks
from mlflow_breadcrumbs.sources import finetuning, training

SETTINGS = training.TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder_of_store(tmp_path_factory, empty_database):
    return tiny.new_store(tmp_path_factory.mktemp("store"), empty_database)


@pytest.fixture
def store(folder_of_store, monkeypatch):
    monkeypatch.chdir(folder_of_store)
    previous, threads = mlflow.get_tracking_uri(), torch.get_num_threads()
    tiny.use_store(folder_of_store)
    torch.set_num_threads(1)
    yield folder_of_store
    torch.set_num_threads(threads)
    zoos.use(previous)


@pytest.fixture
def task(tmp_path):
    return tasks.load_tasks(tiny.task_file(tmp_path, count=10))[0]


def registered_base(tmp_path, name, content=tiny.MODEL, **options):
    config = tiny.config(tmp_path, content)
    with mlflow.start_run():
        flavor.log_model(
            "model",
            config=config,
            model=tiny.model(config),
            registered_model_name=name,
            **options,
        )
    return f"models:/{name}/1"


def test_the_result_is_a_source_with_its_lineage(store, tmp_path, task):
    base = registered_base(tmp_path, "base")
    version = finetuning.finetune(
        base, task, registered_model="source", settings=SETTINGS, device="cpu"
    )
    client = mlflow.MlflowClient()
    found = client.get_model_version("source", version.version)
    assert found.tags["breadcrumbs.task"] == "colours"
    assert found.tags["breadcrumbs.base"] == base
    assert found.tags["breadcrumbs.weights_digest"] == version.weights_digest
    loaded = flavor.load_model(version.uri)
    assert checkpoints.state_dict_digest(loaded.model.state_dict()) == version.weights_digest
    assert loaded.heads["colours"].kind == "zero-shot"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    original = client.get_model_version("base", "1").source.rpartition("/")[2]
    assert [model.model_id for model in run.inputs.model_inputs] == [original]
    assert [model.model_id for model in run.outputs.model_outputs] == [version.model_id]
    assert {data.dataset.name for data in run.inputs.dataset_inputs} == {
        "colours/train",
        "colours/validation",
    }
    assert run.data.params["finetune.learning_rate"] == "0.001"
    losses = client.get_metric_history(version.run_id, "train_loss")
    assert [metric.step for metric in losses] == [1, 2]
    assert 0 <= run.data.metrics["validation_accuracy/colours"] <= 1


def test_the_bases_head_is_used_where_it_has_one(store, tmp_path, task):
    own = task_heads.Head("colours", task.classes, ("{}",), "file", torch.randn(3, 12))
    base = registered_base(tmp_path, "with-head", heads=[own])
    version = finetuning.finetune(
        base, task, registered_model="headed", settings=SETTINGS, device="cpu"
    )
    assert torch.equal(flavor.load_model(version.uri).heads["colours"].weight, own.weight)


def test_without_text_tower_and_head(store, tmp_path, task):
    base = registered_base(tmp_path, "image-only", tiny.IMAGE_ONLY)
    with pytest.raises(errors.TaskError, match=r"no text tower and no head for task 'colours'"):
        finetuning.finetune(base, task, registered_model="never", settings=SETTINGS, device="cpu")


def test_a_stopped_job_goes_on_and_cleans_up(store, tmp_path, task, monkeypatch):
    base = registered_base(tmp_path, "stopped-base")
    whole = finetuning.finetune(
        base, task, registered_model="whole", settings=SETTINGS, device="cpu"
    )
    folder = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_metrics", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetuning.finetune(
                base,
                task,
                registered_model="resumed",
                settings=SETTINGS,
                device="cpu",
                folder=folder,
            )
    assert (folder / training.RESUME_FILE).exists()
    assert not mlflow.MlflowClient().search_registered_models("name = 'resumed'")
    resumed = finetuning.finetune(
        base, task, registered_model="resumed", settings=SETTINGS, device="cpu", folder=folder
    )
    assert resumed.weights_digest == whole.weights_digest
    assert not (folder / training.RESUME_FILE).exists()
    losses = mlflow.MlflowClient().get_metric_history(resumed.run_id, "train_loss")
    assert [metric.step for metric in losses] == [1, 2]


def _interrupt(*args, **options):
    raise KeyboardInterrupt


def test_changed_bytes_of_the_base_stop_it(store, tmp_path, task):
    base = registered_base(
        tmp_path, "changed", tags={"breadcrumbs.weights_digest": "sha256:" + "0" * 64}
    )
    with pytest.raises(errors.IntegrityError, match=r"models:/changed/1 were changed"):
        finetuning.finetune(base, task, registered_model="never", settings=SETTINGS, device="cpu")


def test_an_unknown_base_and_an_impossible_name(store, task):
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/nobody/1"):
        finetuning.finetune("models:/nobody/1", task, registered_model="x", device="cpu")
    with pytest.raises(errors.RegistryError, match="can't name a registered model"):
        finetuning.finetune("models:/nobody/1", task, registered_model="a/b", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent(store, task):
    with pytest.raises(errors.DeviceError, match="finds no CUDA device"):
        finetuning.finetune("models:/nobody/1", task, registered_model="x", device="cuda")
