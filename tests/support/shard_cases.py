"""Checkpoints and recipes of merges in shards."""

import torch

from mlflow_breadcrumbs.engine import recipe

SHARD = 6000
"""Bytes: the checkpoints' tensors make five shards."""


def states(sources=3, dtype=torch.float32):
    """A base and its sources: matrices, vectors, an integer, one tensor larger than a shard."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"a.weight": (40, 30), "b.weight": (30, 20), "c.bias": (30,), "d.weight": (60, 50)}
    shapes |= {"e.weight": (7, 5, 3), "f.scale": (), "g.weight": (31, 41)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = [base]
    for _ in range(sources):
        found.append(
            {
                name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in base.items()
            }
        )
    counted = {"positions": torch.arange(2000)}
    return [{name: t.to(dtype) for name, t in state.items()} | counted for state in found]


RECIPES = {
    "tensor": recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.4),
    "row": recipe.MergeRecipe(density=0.2, gamma=0.05, unit="row", consensus="mass"),
    "model": recipe.MergeRecipe(density=0.2, gamma=0.01, unit="model", weights=(1, 0.5, -2)),
    "ties": recipe.MergeRecipe.from_method("ties", sources=3),
    "deep": recipe.MergeRecipe(density=0.5, depth=0.5, vectors="whole_mean"),
    "tsv": recipe.MergeRecipe.from_method("tsv_m", sources=3),
    "iso": recipe.MergeRecipe(density=0.4, unit="model", combine="iso"),
}
