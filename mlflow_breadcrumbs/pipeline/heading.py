"""The heads that sources keep for their tasks: found before the merge, carried by its version."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import adapters, alignment, checkpoints, deciding, recipe
from mlflow_breadcrumbs.flavor import own_heads
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import tag_keys, versions

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
        heads = _keep(taken, aligned, folder / FOLDER)
    return dataclasses.replace(taken, alignments=found, own=heads)


def _keep(
    taken: inputs.Inputs, aligned: Sequence[checkpoints.Checkpoint], folder: Path
) -> dict[str, own_heads.OwnHead]:
    """Write the heads of all sources; by task."""
    found: dict[str, own_heads.OwnHead] = {}
    for version, source in zip(taken.sources, aligned, strict=True):
        if not isinstance(source, alignment.Aligned) or not source.alignment.own:
            continue
        if taken.is_ours:
            raise errors.MergeError(
                f"{version.resolved.uri} has tensors that the base has not, and an open_clip model "
                f"has one tower of a kind: {', '.join(source.alignment.own[:5])}. Its heads are in "
                "the folder tasks; leave --own out"
            )
        if len(taken.base.checkpoints) > 1:
            raise errors.MergeError(
                f"{version.resolved.uri} has tensors that the base has not, and the base "
                f"{taken.base.resolved.uri} has several checkpoints "
                f"({', '.join(taken.base.checkpoints)}), beside which no head is kept; leave the "
                "source out, or these tensors (--exclude)"
            )
        for task in _tasks_of(version):
            if task in found:
                raise errors.MergeError(
                    f"the sources {found[task].source} and {version.resolved.uri} both have a head "
                    f"for the task {task!r}; set the tag {tag_keys.TASK} of one to another task, "
                    "or leave one out"
                )
            found[task] = own_heads.keep(task, taken.base, version, source, folder)
    return found


def _tasks_of(version: versions.OpenedVersion) -> tuple[str, ...]:
    """What a source is for: by its tag, or else its registered name."""
    resolved = version.resolved
    if not resolved.tasks and resolved.name is None:
        raise errors.MergeError(
            f"{resolved.uri} has a head of its own, and neither a name nor the tag "
            f"{tag_keys.TASK} says for which task; set the tag, or register it"
        )
    return resolved.tasks or (str(resolved.name),)
