"""The heads that sources keep for their tasks: found before the merge, carried by its version.

A source keeps its own head, or passes on those that it carries, as a merge of sources with heads.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import adapters, alignment, checkpoints, deciding, recipe
from mlflow_breadcrumbs.flavor import own_heads
from mlflow_breadcrumbs.lineage import ancestry_tags
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.support import wording

FOLDER = "heads"
"""Where they lie until they are registered."""


def with_heads(taken: inputs.Inputs, settings: recipe.MergeRecipe, folder: Path) -> inputs.Inputs:
    """The same inputs, with what their sources keep for themselves.

    Args:
        taken: the base and the sources.
        settings: the recipe, for its patterns.
        folder: gets the files of the heads.

    Raises:
        MergeError: the tensors don't fit together, a head is for no task, or two are for one.
        TaskError: a task's name can't be a file's.
    """
    with contextlib.ExitStack() as stack:
        base, *sources = adapters.open_all(stack, (version.stored for version in taken.everything))
        labels = [source.resolved.uri for source in taken.sources]
        aligned, _ = deciding.align(base, sources, settings, labels)
        found = {
            label: source.alignment
            for label, source in zip(labels, aligned, strict=True)
            if isinstance(source, alignment.Aligned)
        }
        keeping = _Keeping(taken, folder / FOLDER)
        for version, source in zip(taken.sources, aligned, strict=True):
            keeping.keep(version, source)
        keeping.leave_the_base_s()
        tensors = len(base.names)
    return dataclasses.replace(
        taken,
        alignments=found,
        own=keeping.heads,
        given_up=keeping.given_up,
        remarks=tuple(keeping.remarks),
        tensors=tensors,
    )


class _Keeping:
    """Writes the heads of all sources, one after another.

    Args:
        taken: the base and the sources.
        folder: gets the files.
    """

    def __init__(self, taken: inputs.Inputs, folder: Path) -> None:
        self._taken, self._folder = taken, folder
        self.heads: dict[str, own_heads.OwnHead] = {}
        """By task."""
        self.given_up: dict[str, tuple[str, ...]] = {}
        """By URI, the tasks of heads that are left out."""
        self.remarks: list[str] = []

    def keep(self, version: versions.OpenedVersion, source: checkpoints.Checkpoint) -> None:
        """Write what a source keeps: its own head, and those that it carries."""
        if isinstance(source, alignment.Aligned) and source.alignment.own:
            self._check_place(version, source.alignment.own)
            for task in _tasks_of(version):
                self._check_free(task, version)
                self.heads[task] = own_heads.keep(
                    task, self._taken.base, version, source, self._folder
                )
        carried = self._carried(version)
        if not carried:
            return
        if reason := self._reason(version, source):
            self._give_up(version, carried, f"since {reason}")
            return
        for task, head in carried.items():
            self._check_free(task, version)
            self.heads[task] = own_heads.pass_on(head, version, self._folder)

    def leave_the_base_s(self) -> None:
        """Say which heads the base carries: a base gives its weights, and no task."""
        base = self._taken.base
        if carried := self._carried(base):
            self._give_up(
                base,
                carried,
                "since it is the base; to keep them, name the base that it was merged into, and "
                f"{base.resolved.uri} as a source",
            )

    def _carried(self, version: versions.OpenedVersion) -> dict[str, own_heads.OwnHead]:
        """The heads that a version carries; those of open_clip models are no such files."""
        return {} if self._taken.is_ours else own_heads.read(version.folder)

    def _give_up(
        self, version: versions.OpenedVersion, carried: dict[str, own_heads.OwnHead], why: str
    ) -> None:
        uri = version.resolved.uri
        self.given_up[uri] = tuple(carried)
        self.remarks.append(
            f"the heads that {uri} carries ({', '.join(carried)}) are left out, {why}"
        )

    def _reason(
        self, version: versions.OpenedVersion, source: checkpoints.Checkpoint
    ) -> str | None:
        """Why a head of a source's backbone may not fit the merged one; `None` if it does."""
        if isinstance(source, alignment.Aligned):
            return "its tensors are not quite the base's; merge its own sources in its place"
        if differing := own_heads.differing_fields(self._taken.base, version):
            return (
                f"its config.json has other values than the base's ({wording.listed(differing)}); "
                "merge its own sources in its place"
            )
        return None

    def _check_place(self, version: versions.OpenedVersion, own: Sequence[str]) -> None:
        """Raise `MergeError` where no head can be kept beside the backbone."""
        base = self._taken.base
        if self._taken.is_ours:
            raise errors.MergeError(
                f"{version.resolved.uri} has tensors that the base has not, and an open_clip model "
                f"has one tower of a kind: {', '.join(own[:5])}. Its heads are in the folder "
                "tasks; leave --own out"
            )
        if len(base.checkpoints) > 1:
            raise errors.MergeError(
                f"{version.resolved.uri} has tensors that the base has not, and the base "
                f"{base.resolved.uri} has several checkpoints "
                f"({', '.join(base.checkpoints)}), beside which no head is kept; leave the "
                "source out, or these tensors (--exclude)"
            )

    def _check_free(self, task: str, version: versions.OpenedVersion) -> None:
        """Raise `MergeError` for a task that has a head already."""
        if task not in self.heads:
            return
        raise errors.MergeError(
            f"the sources {self.heads[task].source} and {version.resolved.uri} both have a head "
            f"for the task {task!r}; set the tag {tag_keys.TASK} of one to another task, or leave "
            "one out. The tasks of heads that a merge carries are its sources': merge these in its "
            "place"
        )


def _tasks_of(version: versions.OpenedVersion) -> tuple[str, ...]:
    """What a source is for: by its tag, or else its registered name."""
    resolved = version.resolved
    found = ancestry_tags.purpose(resolved.tasks, resolved.uri)
    if not found:
        raise errors.MergeError(
            f"{resolved.uri} has a head of its own, and neither a name nor the tag "
            f"{tag_keys.TASK} says for which task; set the tag, or register it"
        )
    return found
