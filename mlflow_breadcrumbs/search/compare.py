"""Before a merge: the sources' changes side by side, from the weights alone.

```python
found = compare.compare("models:/clip/1", ["models:/clip-cars/1", "models:/clip-signs/1"])
print(found.rows(), [finding.advice for finding in found.findings])
```
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    adapters,
    checkpoints,
    layer_groups,
    merging,
    patterns,
    recipe,
    rounding,
)
from mlflow_breadcrumbs.engine.backends.cpu import geometry
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.pipeline import configurations, inputs
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import advice
from mlflow_breadcrumbs.support import defaults, processes, progress


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The task vectors of some sources, side by side."""

    base: str
    """URI of the base, pinned."""
    sources: tuple[str, ...]
    """URIs of the sources, pinned, in the order given."""
    recipe: recipe.MergeRecipe
    """Whose masks were looked at."""
    layers: Mapping[str, geometry.Geometry]
    """By layer group, from the input to the output as their names sort."""
    total: geometry.Geometry
    """Of all merged tensors together."""
    stored: tuple[int, ...]
    """Bytes of tensors in each source's checkpoint."""
    model_parameters: int
    """Elements of all tensors of the base, the unmerged ones too."""
    findings: tuple[advice.Finding, ...]

    def picture(self) -> bytes:
        """The cosines and the length of every layer group, as PNG."""
        moved = {name: layer.ratios for name, layer in self.layers.items() if layer.norms.any()}
        still = len(self.layers) - len(moved)
        return results.heat_map(self.sources, self.total.cosines, moved, still=still)

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per source; the last columns look at the other sources.

        `norm` is ‖τ‖, `relative_norm` ‖τ‖ / ‖θ‖, `energy_kept` the share of Σ τ² that the mask
        keeps; `nearest` is the other source with the largest `cosine`; `sign_conflict` and
        `overlap` are means over the others (chance: one half, and the density).
        """
        total, count = self.total, len(self.sources)
        rows = []
        for number, source in enumerate(self.sources):
            others = [other for other in range(count) if other != number]
            row: dict[str, Any] = {
                "source": source,
                "norm": float(total.norms[number]),
                "relative_norm": float(total.ratios[number]),
                "energy_kept": float(total.energy_kept[number]),
            }
            if others:
                nearest = max(others, key=lambda other: total.cosines[number, other])
                row |= {
                    "nearest": self.sources[nearest],
                    "cosine": float(total.cosines[number, nearest]),
                    "sign_conflict": float(total.conflicts[number, others].mean()),
                    "overlap": float(total.overlaps[number, others].mean()),
                }
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`; matrices are [sources, sources] in the order of `sources`."""
        return {
            "base": self.base,
            "base_norm": self.total.base_norm,
            "parameters": self.total.elements,
            "model_parameters": self.model_parameters,
            "recipe": self.recipe.to_dict(),
            "sources": [
                row | {"bytes": size} for row, size in zip(self.rows(), self.stored, strict=True)
            ],
            "cosines": self.total.cosines.tolist(),
            "sign_conflicts": self.total.conflicts.tolist(),
            "overlaps": self.total.overlaps.tolist(),
            "layers": [
                {
                    "layer": name,
                    "parameters": layer.elements,
                    "base_norm": layer.base_norm,
                    "norms": layer.norms.tolist(),
                    "energy_kept": layer.energy_kept.tolist(),
                    "cosines": layer.cosines.tolist(),
                }
                for name, layer in self.layers.items()
            ],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def compare(
    base: str,
    sources: Sequence[str],
    settings: recipe.MergeRecipe | None = None,
    *,
    named: Sequence[str] = (),
    threads: int | None = None,
    max_norm_ratio: float = defaults.MAX_NORM_RATIO,
    show: progress.Progress = progress.silent,
) -> Comparison:
    """Hold the task vectors of registered versions against each other.

    Args:
        base: registry URI of the version that the sources were fine-tuned from.
        sources: registry URIs.
        settings: the recipe whose masks are looked at; `breadcrumbs` when not given.
        named: patterns that were named for it, each of which must match a tensor.
        threads: all processors when not given.
        max_norm_ratio: what the merge would be told.
        show: is told the bytes read.

    Raises:
        RegistryError: a version can't be found or read.
        MergeError: a limit that no source keeps, no sources, one twice, tensors that are not the
            base's, a pattern that matches none, a value that is not finite.
    """
    merging.check_norm_ratio(max_norm_ratio)
    settings = settings or recipe.MergeRecipe.from_method("breadcrumbs", sources=len(sources))
    resolved = inputs.resolve(base, sources)
    labels = tuple(entry.uri for entry in resolved[1:])
    with versions.workspace() as folder, contextlib.ExitStack() as stack:
        opened, recorded = inputs.open_versions(resolved, folder)
        first, *others = adapters.open_all(stack, (version.weights for version in opened))
        patterns.check(first, others, named)
        job = merging.plan(first, others, settings, labels)
        volume = sum(
            checkpoint.info(name).nbytes for checkpoint in job.inputs for name in job.merged
        )
        with show("compare", total=volume, unit="bytes") as advance:
            measured = geometry.measure(
                job, threads=threads or processes.processors(), advance=advance
            )
        stored = tuple(checkpoint.nbytes for checkpoint in others)
        parameters = sum(first.info(name).numel for name in first.names)
        clash = _head_clash(opened[1:])
        fits = configurations.compare(opened)
        noises = rounding.of_sources(
            job,
            {name: layer.base_energy for name, layer in measured.items()},
            (
                (number, float(energy))
                for layer in measured.values()
                for number, energy in enumerate(layer.products.diagonal())
            ),
        )
        seen = merging.seen(job)
        total = geometry.total(measured.values(), len(sources))
        digests = _digests(others, recorded[1:], labels, total)
    evidence = advice.Comparand(
        labels=labels,
        measured=total,
        recipe=settings,
        max_norm_ratio=max_norm_ratio,
        digests=digests,
        head_clash=clash,
        fits=fits,
        running=tuple(job.running),
        idle=seen["idle"],
        unnamed=seen["unnamed"],
        noises=noises,
    )
    return Comparison(
        base=resolved[0].uri,
        sources=labels,
        recipe=settings,
        layers=_by_layer(measured, len(sources)),
        total=total,
        stored=stored,
        model_parameters=parameters,
        findings=advice.findings(evidence),
    )


def _by_layer(
    measured: Mapping[str, geometry.Geometry], sources: int
) -> dict[str, geometry.Geometry]:
    layers: dict[str, geometry.Geometry] = {}
    for name, layer in layer_groups.group(measured).items():
        layers[layer] = layers.get(layer, geometry.nothing(sources)) + measured[name]
    return layers


def _digests(
    sources: Sequence[checkpoints.Checkpoint],
    recorded: Sequence[str | None],
    labels: Sequence[str],
    total: geometry.Geometry,
) -> tuple[str, ...]:
    """What tells the sources' weights apart.

    The digest on record; without one, that of the bytes for a source that points the same way as
    another and may be the same, and the label for every other one.
    """
    found = []
    for number, digest in enumerate(recorded):
        alike = (total.cosines[number] > advice.ALIKE).sum() > 1
        if digest is None and alike:
            digest = checkpoints.weights_digest(sources[number])
        found.append(labels[number] if digest is None else digest)
    return tuple(found)


def _head_clash(sources: Sequence[versions.OpenedVersion]) -> str | None:
    """Why the sources' heads can't go into one version, if they can't."""
    try:
        inputs.collect_heads(sources)
    except errors.MergeError as error:
        return str(error)
    return None
