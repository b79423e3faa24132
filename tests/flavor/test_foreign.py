"""Versions of another flavor: a transformers model merges, and stays a transformers model."""

import copy
import dataclasses
import json
from pathlib import Path

import mlflow
import pytest
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.audit import export, reproduce, verify
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.shards import working
from mlflow_breadcrumbs.pipeline import flow, planning
from mlflow_breadcrumbs.registry import versions

transformers = pytest.importorskip("transformers")
berts = pytest.importorskip("berts")

pytestmark = pytest.mark.slow


def register(name, seed, base=None):
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    model = transformers.ViTForImageClassification(config)
    if base is not None:
        state = base.state_dict()
        noise = {key: 0.01 * torch.randn_like(value) for key, value in state.items()}
        model.load_state_dict({key: value + noise[key] for key, value in state.items()})
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    with mlflow.start_run():
        mlflow.transformers.log_model(
            {"model": model, "image_processor": processor},
            name="model",
            task="image-classification",
            registered_model_name=name,
            pip_requirements=["torch", "transformers"],
        )
    return model


def test_transformers_versions_are_merged_from_their_safetensors(store):
    base = register("vit", 0)
    tuned = [register(f"vit-{i}", i, base) for i in (1, 2)]
    request = flow.MergeRequest(
        base="models:/vit/1",
        sources=("models:/vit-1/1", "models:/vit-2/1"),
        registered_model="merged",
        recipe=recipe.MergeRecipe.from_method("task_arithmetic", sources=2, alpha=1),
        device="cpu",
    )
    result = flow.merge(request)
    loaded = mlflow.transformers.load_model("models:/merged/1", return_type="components")["model"]
    for name, tensor in loaded.state_dict().items():
        first, *others = (model.state_dict()[name] for model in (base, *tuned))
        expected = first + sum(other - first for other in others)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)
    resolved = versions.resolve("models:/merged/1")
    with versions.workspace() as folder:
        opened = versions.open_version(resolved, folder)
        assert opened.flavor == "transformers"
        lineage = json.loads((opened.folder / "lineage.json").read_bytes())
        assert lineage["subject"][0]["name"] == str(opened.weights.relative_to(opened.folder))
    assert flow.merge(request).version == result.version
    report = verify.verify("models:/merged/1")
    assert report.ok, report.failures
    assert reproduce.reproduce("models:/merged/1").identical
    assert "library_name" not in export.export("models:/merged/1", "model-card")
    again = flow.MergeRequest(**{**vars(request), "force": True})
    assert flow.merge(again).version.weights_digest == result.version.weights_digest
    with pytest.raises(errors.TaskError, match="was logged by the flavor 'transformers'"):
        flow.merge(flow.MergeRequest(**{**vars(request), "force": True, "tasks": "tasks.yaml"}))


def test_a_sharded_base_gives_a_sharded_version(store, monkeypatch, tmp_path):
    """Files of the same names and no larger, which its own library loads; done in pieces too."""
    monkeypatch.setenv("MLFLOW_HUGGINGFACE_MODEL_MAX_SHARD_SIZE", "6KB")
    base = register("sharded", 0)
    for i in (1, 2):
        register(f"sharded-{i}", i, base)
    before = {path.name for path in files_in("models:/sharded/1")}
    assert len(before) > 3
    request = flow.MergeRequest(
        base="models:/sharded/1",
        sources=("models:/sharded-1/1", "models:/sharded-2/1"),
        registered_model="merged",
        recipe=recipe.MergeRecipe.from_method("task_arithmetic", sources=2, alpha=1),
        device="cpu",
    )
    result = flow.merge(request)
    after = files_in(result.version.uri)
    assert {path.name for path in after} >= {"model.safetensors.index.json"}
    assert abs(len(after) - len(before)) <= 1
    loaded = mlflow.transformers.load_model(result.version.uri, return_type="components")["model"]
    assert loaded.state_dict().keys() == base.state_dict().keys()
    assert verify.verify(result.version.uri).ok
    assert reproduce.reproduce(result.version.uri).reproduced_digest == (
        result.version.weights_digest
    )
    again = dataclasses.replace(
        request, force=True, work_folder=str(tmp_path / "work"), max_shard_size=20_000
    )
    path, plan = planning.plan(again)
    assert plan.max_shard_size == 20_000
    list(working.work_all(plan, range(1, len(plan.shards) + 1)))
    other = flow.merge(again)
    assert other.version.weights_digest == result.version.weights_digest
    assert len(files_in(other.version.uri)) < len(after)
    assert not path.exists()


def files_in(uri):
    """The weights' files of a version."""
    folder = Path(versions.resolve(uri).location.removeprefix("file://"))
    return list(folder.rglob("*.safetensors*"))


def adapted(base, seed, folder, **settings):
    """The model with a LoRA adapter that was trained a little, and what both make."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    base.save_pretrained(folder / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(folder / "base")
    known = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"]}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**known | settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    whole = copy.deepcopy(tuned).merge_and_unload().state_dict()
    return tuned, whole


def test_registered_adapters_are_merged_into_their_base(store, tmp_path):
    """Of two ranks, beside a full fine-tune: verified, done again, loaded by transformers."""
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(berts.config())
    full = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    berts.register("bert", base, tmp_path)
    berts.register("bert-full", full, tmp_path)
    made = []
    for number, settings in enumerate(({}, {"r": 5, "target_modules": ["key", "dense"]}), start=1):
        tuned, whole = adapted(base, number, tmp_path, **settings)
        berts.register(f"lora-{number}", tuned, tmp_path)
        made.append(whole)
    assert versions.resolve("models:/lora-1/1").recorded_digest is None
    request = flow.MergeRequest(
        base="models:/bert/1",
        sources=("models:/lora-1/1", "models:/lora-2/1", "models:/bert-full/1"),
        registered_model="merged",
        recipe=recipe.MergeRecipe.from_method("task_arithmetic", sources=3, alpha=1),
        device="cpu",
    )
    result = flow.merge(request)
    loaded = mlflow.transformers.load_model(result.version.uri, return_type="components")["model"]
    before = base.state_dict()
    for name, tensor in loaded.state_dict().items():
        sources = [state[name].double() for state in (*made, full.state_dict())]
        expected = sum(source - before[name].double() for source in sources)
        ours = tensor.double() - before[name].double()
        assert (ours - expected).norm() <= 1e-6 * max(1.0, float(expected.norm())), name
    report = verify.verify(result.version.uri)
    assert report.ok, report.failures
    again = reproduce.reproduce(result.version.uri)
    assert again.reproduced_digest == result.version.weights_digest
    assert flow.merge(request).reused
    swapped = dataclasses.replace(
        request, base="models:/lora-1/1", sources=("models:/lora-2/1",), registered_model="x"
    )
    with pytest.raises(errors.MergeError, match="is a LoRA adapter, which is only a change of ano"):
        flow.merge(dataclasses.replace(swapped, recipe=recipe.MergeRecipe(density=1.0)))
