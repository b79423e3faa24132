"""Which source, and which layers, cost a task its accuracy in a merged version.

Leave one source out, merge again, measure; leave one layer group at the base's weights, measure.
Everything on a subset of the images first, then the most telling ones on all of them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, layer_groups, recipe, tolerance
from mlflow_breadcrumbs.evaluation import evaluator_files, scores
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.models.tasks import Split
from mlflow_breadcrumbs.registry import projects, run_files, versions
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import defaults, progress, tables

FOLDER = "blame"


@dataclasses.dataclass(frozen=True)
class BlameRequest:
    """What a user asks for."""

    uri: str
    """Of the merged version."""
    task: str
    tasks: str | None = None
    """A task file, or an artifact URI of one."""
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means of measuring, in place of a task file."""
    split: Split = "test"
    images: int | None = defaults.BLAME_IMAGES
    """Of the first look; `None` looks at all images at once."""
    finalists: int = defaults.FINALISTS
    """Sources and layer groups, of each, that are measured again on all images."""
    device: str = "auto"
    batch_size: int = defaults.BATCH_SIZE
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A source or a layer group, and the task's accuracy without it."""

    kind: str
    """`source` or `layers` (a layer group)."""
    name: str
    without: scores.Score
    """The task's, when it is left out."""
    merged: scores.Score
    """The merged version's, on the same images."""

    @property
    def total(self) -> int | None:
        """Images that it was measured on; `None` where nobody says."""
        return self.without.total

    @property
    def accuracy(self) -> float:
        """Without the suspect, in the unit of the task's metric."""
        return self.without.value

    @property
    def gain(self) -> float:
        """By how much the task is better when the suspect is left out; negative: it is worse."""
        return self.without.scale.gain(self.without.value, self.merged.value)

    @property
    def clear(self) -> bool:
        """The accuracy without it is above the 95 % interval of the merged version's.

        Never, where the metric has no interval.
        """
        known = self.merged.interval()
        return known is not None and self.accuracy > known.high

    def to_dict(self) -> dict[str, Any]:
        """One row of the table."""
        return {
            "kind": self.kind,
            "left_out": self.name,
            "images": self.total,
            "accuracy": self.accuracy,
            "gain": self.gain,
            "clear": self.clear,
        }


@dataclasses.dataclass(frozen=True)
class Blame:
    """What costs a task its accuracy."""

    uri: str
    task: str
    run_id: str
    """The merged version's run, which has the table and the picture."""
    base: scores.Score
    source: scores.Score
    """Of the task's own source."""
    merged: scores.Score
    suspects: tuple[Suspect, ...]
    """Sources, then layer groups; the largest gain first, and the most images before fewer."""
    own: str
    """The task's own source."""

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        known = self.merged.interval()
        sure = f"95 % interval {known.low:.3f} to {known.high:.3f}" if known else self._metric
        start = (
            f"{self.task}: {self.merged.value:.3f} merged ({sure}), "
            f"{self.source.value:.3f} by its own source, {self.base.value:.3f} by the base. "
        )
        return start + " ".join(self._verdict(kind) for kind in ("source", "layers"))

    def rows(self) -> list[dict[str, Any]]:
        """The table."""
        return [suspect.to_dict() for suspect in self.suspects]

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "uri": self.uri,
            "task": self.task,
            "run_id": self.run_id,
            "sentence": self.sentence,
            **({} if self.merged.scale.is_accuracy else self.merged.scale.to_dict()),
            "accuracy": self.merged.value,
            "finetuned_accuracy": self.source.value,
            "zero_shot_accuracy": self.base.value,
            "images": self.merged.total,
            "own_source": self.own,
            "suspects": self.rows(),
        }

    @property
    def _metric(self) -> str:
        return f"{self.merged.scale.metric}, without an interval"

    def _verdict(self, kind: str) -> str:
        first = next(suspect for suspect in self.suspects if suspect.kind == kind)
        name = first.name + (" (its own source)" if first.name == self.own else "")
        if first.clear:
            what = "Without" if kind == "source" else "With the base's weights in"
            return (
                f"{what} {name} it is {first.accuracy:.3f} on {first.total} images, "
                f"{first.gain:+.3f}: clearly more."
            )
        what = "source" if kind == "source" else "layer group"
        if self.merged.interval() is None:
            return f"Of the {what}s, {name} costs most: without it {first.gain:+.3f}."
        return f"No single {what} is to blame: the largest gain is {first.gain:+.3f}, by {name}."


def blame(request: BlameRequest, show: progress.Progress = progress.silent) -> Blame:
    """Find out what costs a task its accuracy, and log it to the merged version's run.

    Raises:
        RegistryError: the version is no merge, or one of its inputs is gone.
        IntegrityError: the inputs or the merge have other bytes than were recorded.
        TaskError: the version has no such task, or its images are unusable.
    """
    resolved = versions.resolve(request.uri)
    if request.task not in resolved.tasks:
        raise errors.TaskError(
            f"{resolved.uri} has no task {request.task!r}; it has "
            f"{', '.join(resolved.tasks) or 'none'}"
        )
    _, stated = contents.read_statement(resolved)
    materials = workbench.Materials(
        stated.base.uri,
        tuple(source.uri for source in stated.sources),
        request.tasks,
        evaluator=request.evaluator,
        device=request.device,
        batch_size=request.batch_size,
        threads=request.threads,
        max_norm_ratio=None,  # whoever merged has accepted the sources
    )
    with workbench.opened(materials, show) as bench:
        found = _investigate(bench, request, resolved, stated, show)
    if resolved.run_id is not None:
        _log(found)
        projects.point(
            f"blame {resolved.uri}", found.sentence, version=resolved.uri, run_id=resolved.run_id
        )
    return found


def _investigate(
    bench: workbench.Study,
    request: BlameRequest,
    resolved: versions.ResolvedVersion,
    stated: statement.Statement,
    show: progress.Progress,
) -> Blame:
    if bench.taken.digests != tuple(entry.weights_digest for entry in stated.inputs):
        raise errors.IntegrityError(
            f"{resolved.uri} was merged from other weights than {stated.base.uri} and its sources "
            "have now; restore the versions that its lineage.json names"
        )
    bench.prepare([stated.settings])
    merged = bench.merge(stated.settings)
    _check_repeated(resolved, stated, merged)
    own = bench.owner(request.task, request.split)
    (score,) = (
        score
        for score in bench.score(merged, (own,), split=request.split).scores
        if score.task == request.task
    )
    trial = _Trial(bench, request, stated.settings, merged, score.merged)
    images = None if trial.images == score.merged.total else trial.images
    suspects = _rank("source", bench.labels, trial.source, images, request.finalists, show)
    suspects += _rank("layers", trial.groups, trial.layers, images, request.finalists, show)
    return Blame(
        uri=resolved.uri,
        task=request.task,
        run_id=resolved.run_id or "",
        base=score.zero_shot,
        source=score.finetuned,
        merged=score.merged,
        suspects=tuple(suspects),
        own=bench.labels[own],
    )


def _check_repeated(
    resolved: versions.ResolvedVersion, stated: statement.Statement, merged: workbench.InMemory
) -> None:
    """Hold the merge that was done again against the version: by its bits, or its tolerance."""
    if stated.settings.bit_exact or merged.weights_digest == resolved.recorded_digest:
        versions.check_digest(resolved, merged.weights_digest)
        return
    with versions.workspace() as folder:
        weights = versions.open_version(resolved, folder).weights
        versions.check_digest(resolved, checkpoints.weights_digest(weights))
        with checkpoints.Checkpoint.open(weights) as file:
            registered = {name: file.tensor(name) for name in file.names}
            found = tolerance.differences(
                registered, merged.tensors, stated.settings, stated.tolerances
            )
    if far := [difference.tensor for difference in found if not difference.within]:
        raise errors.IntegrityError(
            f"{resolved.uri} merged again differs from it by more than the tolerance of its "
            f"lineage.json in: {', '.join(far)}; see `mlflow-breadcrumbs reproduce`"
        )


class _Trial:
    """The merged version with one thing left out, measured on the task.

    Args:
        bench: open on the version's base and sources.
        request: what was asked for.
        settings: the version's recipe.
        merged: the version itself, in memory.
        whole: its accuracy on all images.
    """

    def __init__(
        self,
        bench: workbench.Study,
        request: BlameRequest,
        settings: recipe.MergeRecipe,
        merged: workbench.InMemory,
        whole: scores.Score,
    ) -> None:
        self._bench, self._request, self._recipe = bench, request, settings
        self._base = bench.base_tensors()
        self._merged = {name: tensor.clone() for name, tensor in merged.tensors.items()}
        self._group_of = layer_groups.group(self._merged)
        changed = [
            name
            for name, tensor in self._merged.items()
            if not torch.equal(tensor, self._base[name])
        ]
        self.groups = tuple(dict.fromkeys(self._group_of[name] for name in changed))
        self.images = bench.first_look(request.images, whole.total)
        self.before: dict[int | None, scores.Score] = {None: whole}
        if self.images is not None:
            self.before[self.images] = self._measure(self._merged, self.images)

    def source(self, label: str, images: int | None) -> Suspect:
        """Without one source; the other weights and alpha stay as they were."""
        members = [i for i, other in enumerate(self._bench.labels) if other != label]
        tensors = self._bench.merge(self._recipe, members).tensors if members else self._base
        return self._suspect("source", label, tensors, images)

    def layers(self, group: str, images: int | None) -> Suspect:
        """With the base's weights in one layer group."""
        tensors = {
            name: self._base[name] if self._group_of[name] == group else tensor
            for name, tensor in self._merged.items()
        }
        return self._suspect("layers", group, tensors, images)

    def _suspect(
        self, kind: str, name: str, tensors: Mapping[str, torch.Tensor], images: int | None
    ) -> Suspect:
        found = self._measure(tensors, images)
        return Suspect(kind, name, found, self.before[images])

    def _measure(self, tensors: Mapping[str, torch.Tensor], images: int | None) -> scores.Score:
        task = self._request.task
        return self._bench.examine(tensors, [task], self._request.split, images)[task]


def _rank(
    kind: str,
    names: Sequence[str],
    without: Callable[[str, int | None], Suspect],
    images: int | None,
    finalists: int,
    show: progress.Progress,
) -> list[Suspect]:
    """All on a few images, then the first ones on all; the largest gain first."""

    def gain(suspect: Suspect) -> float:
        return -suspect.gain

    again = 0 if images is None else min(finalists, len(names))
    with show(f"without each {kind}", total=len(names) + again, unit="models") as advance:
        found = []
        for name in names:
            found.append(without(name, images))
            advance(1)
        found.sort(key=gain)
        for position in range(again):
            found[position] = without(found[position].name, None)
            advance(1)
    return sorted(found[:again], key=gain) + found[again:]


def _log(found: Blame) -> None:
    """The table, the picture and the sentence, in the merged version's run."""
    stem = found.task
    files = {
        f"{stem}.csv": tables.to_csv(found.rows()).encode(),
        f"{stem}.json": (json.dumps(found.to_dict(), indent=2) + "\n").encode(),
        f"{stem}.png": studies.blame(found.rows(), found.sentence),
    }
    run_files.log_files(found.run_id, files, FOLDER)
