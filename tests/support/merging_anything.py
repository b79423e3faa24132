"""Merges of versions of any flavor: each step that a user takes with one, held to its meaning."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlflow
import torch

from mlflow_breadcrumbs.audit import reproduce, verify
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow, outcomes

Tensors = Mapping[str, torch.Tensor]


def request(base: str, *sources: str, **settings: object) -> flow.MergeRequest:
    """Task arithmetic of all that the sources changed."""
    known = {
        "base": base,
        "sources": sources,
        "registered_model": "merged",
        "recipe": recipe.MergeRecipe.from_method("task_arithmetic", sources=len(sources), alpha=1),
        "device": "cpu",
    }
    return flow.MergeRequest(**known | settings)


def merge(base: str, *sources: str, **settings: object) -> outcomes.MergedVersion:
    """Merge, verify, merge again from the lineage, and find the merge that exists."""
    asked = request(base, *sources, **settings)
    result = flow.merge(asked)
    report = verify.verify(result.version.uri)
    assert report.ok, report.failures
    assert reproduce.reproduce(result.version.uri).identical
    assert flow.merge(flow.MergeRequest(**{**vars(asked), "force": False})).reused
    return result


def register(folder: Path) -> str:
    """The first version of a folder's name, from a run that has the folder; its URI."""
    client = mlflow.MlflowClient()
    client.create_registered_model(folder.name)
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "model")
        source = mlflow.get_artifact_uri("model")
        client.create_model_version(folder.name, source, run.info.run_id)
    return f"models:/{folder.name}/1"


def hold(merged: Tensors, base: Tensors, sources: Sequence[Tensors]) -> None:
    """Hold merged tensors against the definition, in float64."""
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        first = base[name].double()
        expected = first + sum(source[name].double() - first for source in sources)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=0, msg=name)


def shift(tensors: Tensors, seed: int) -> dict[str, torch.Tensor]:
    """What a fine-tuning might make of floating-point tensors."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def family(base: torch.nn.Module, make: Callable[[], torch.nn.Module]) -> list[torch.nn.Module]:
    """The base and two models that were fine-tuned from it."""
    models = [base]
    for seed in (1, 2):
        tuned = make()
        tuned.load_state_dict(shift(base.state_dict(), seed))
        models.append(tuned)
    return models
