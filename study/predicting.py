"""Whether the weights say beforehand which task a merge will serve badly.

Five measures of each source, of which the last three look at the merged change Δ too:

    length     ‖τ‖ / ‖θ‖
    cosine     of τ with the others' task vectors, on average
    projection ⟨Δ, τ⟩ / ‖τ‖²: how much of the source's change is there
    distance   ‖Δ − τ‖ / ‖τ‖: how much else is there
    response   Σ σ_r · u_rᵀΔv_r / Σ σ_r² over the source's leading singular directions, matrix by
               matrix, a T-th of each matrix's rank

They are held against the accuracies of the merge of all tasks by rank correlations over the tasks.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.engine.backends import singular
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import workbench
from study import descriptions
from study import zoo as zoos

FILE = "measures.json"
METHODS = ("breadcrumbs", "task_arithmetic", "breadcrumbs_calibrated", "tsv_lines", "actmat")
MEASURES = ("length", "cosine", "projection", "distance", "response")
SHUFFLES = 2000
"""Orders of the tasks that a correlation is held against."""

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""By method and measure, one number per task."""


def write(zoo: zoos.Zoo, seed: int, folder: Path, on_time: Callable[[], bool]) -> bool:
    """Write the measures of a seed's sources, if there is time; whether they are there."""
    known = descriptions.read(folder / FILE)
    if str(seed) not in known:
        if not on_time():
            return False
        descriptions.write(folder / FILE, {**known, str(seed): measures(zoo)})
    return True


def measures(zoo: zoos.Zoo) -> dict[str, dict[str, list[float]]]:
    """All measures of all sources, for the merges of all by `METHODS`."""
    sources = tuple(zoo.sources.values())
    materials = workbench.Materials(zoo.base, sources, zoo.task_file, device="cpu")
    recipes = {
        method: recipe.MergeRecipe.from_method(method, sources=len(sources))
        for method in METHODS
        if method in recipe.PRESETS
    }
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(workbench.opened(materials))
        bench.prepare(list(recipes.values()))
        merged = {
            method: {name: tensor.clone() for name, tensor in bench.merge(own).tensors.items()}
            for method, own in recipes.items()
        }
        space = stack.enter_context(versions.workspace())
        opened, _ = inputs.open_versions(inputs.resolve(zoo.base, sources), space)
        base, *tuned = (
            stack.enter_context(checkpoints.Checkpoint.open(each.weights)) for each in opened
        )
        sums = {method: _Sums(len(sources)) for method in recipes}
        for name in base.names:
            if base.info(name).dtype.is_floating_point:
                theta = base.tensor(name).double()
                changes = [source.tensor(name).double() - theta for source in tuned]
                leading = [_leading(change, len(sources)) for change in changes]
                for method, own in sums.items():
                    own.add(theta, changes, leading, merged[method][name].double() - theta)
    return {method: own.measures() for method, own in sums.items()}


def _leading(change: torch.Tensor, sources: int) -> singular.Factors | None:
    """The leading singular directions of a source's matrix."""
    if change.dim() != 2 or not change.any():
        return None
    return singular.leading(change, max(1, min(change.shape) // sources))


class _Sums:
    """The sums over all tensors from which a method's measures are made."""

    def __init__(self, sources: int) -> None:
        self._base = 0.0
        self._products = np.zeros((sources, sources))
        self._dots, self._away, self._responses, self._energies = np.zeros((4, sources))

    def add(
        self,
        theta: torch.Tensor,
        changes: Sequence[torch.Tensor],
        leading: Sequence[singular.Factors | None],
        merged: torch.Tensor,
    ) -> None:
        """Take one tensor: the base's, all sources' changes to it, and the merged one."""
        flat = torch.stack([change.reshape(-1) for change in changes])
        self._base += float(theta.square().sum())
        self._products += (flat @ flat.T).numpy()
        self._dots += (flat @ merged.reshape(-1)).numpy()
        self._away += (flat - merged.reshape(-1)).square().sum(1).numpy()
        for source, found in enumerate(leading):
            if found is not None:
                own = ((found.left.T @ merged) * found.right.T).sum(1)
                self._responses[source] += float(own @ found.values)
                self._energies[source] += float(found.values @ found.values)

    def measures(self) -> dict[str, list[float]]:
        """By measure, one number per source."""
        energies = self._products.diagonal()
        cosines = self._products / np.sqrt(np.outer(energies, energies))
        others = len(energies) - 1
        found = {
            "length": np.sqrt(energies / self._base),
            "cosine": (cosines.sum(1) - 1) / others,
            "projection": self._dots / energies,
            "distance": np.sqrt(self._away / energies),
            "response": self._responses / self._energies,
        }
        return {name: [float(f"{value:.4g}") for value in row] for name, row in found.items()}


def correlation(
    measured: Sequence[Sequence[float]], right: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """The mean over seeds of the rank correlation over tasks, and how often chance does as well.

    The seeds have the same tasks, so what is shuffled is the tasks, alike in all seeds.

    Args:
        measured: [seeds, tasks].
        right: [seeds, tasks] how well each task is served.
    """
    tasks = len(measured[0])
    generator = np.random.default_rng(0)
    orders = np.array([generator.permutation(tasks) for _ in range(SHUFFLES)])
    found, chance = 0.0, np.zeros(SHUFFLES)
    for one, other in zip(map(_ranks, measured), map(_ranks, right), strict=True):
        found += float(one @ other) / len(measured)
        chance += one[orders] @ other / len(measured)
    return found, float((np.abs(chance) >= abs(found)).mean())


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks, so that the product of two is Spearman's correlation."""
    from scipy import stats

    ranks: npt.NDArray[np.float64] = stats.rankdata(values)
    ranks -= ranks.mean()
    return ranks / (np.linalg.norm(ranks) or 1.0)
