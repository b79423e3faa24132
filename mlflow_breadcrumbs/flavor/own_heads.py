"""Heads that sources keep for their tasks, beside the one merged backbone of another flavor.

A head is two files of the merged version: `tasks/<task>.safetensors` has the source's own tensors,
and `tasks/<task>.json` what else is needed to make the task's model of the backbone:

```
format    urn:mlflow-breadcrumbs:own-head:v1
task      what it is for
source    URI of the version that it is from
renamed   by the backbone's tensor, its name in the task's model, where that is another
absent    the backbone's tensors that the task's model has not
config    what `config.json` of the task's model has other than the base's, without the dtype of the
          weights; null is not there
declared  what its MLmodel says of the classes that load it
```
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.models import Model

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    adapters,
    alignment,
    checkpoints,
    library_configs,
    naming,
    overlays,
    tensor_files,
    writing,
)
from mlflow_breadcrumbs.flavor import adapted_heads
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import canonical, copies, json_documents

FORMAT = "urn:mlflow-breadcrumbs:own-head:v1"
FOLDER = "tasks"
TIES = "tie_word_embeddings"
"""The field of `config.json` by which an output is the input embedding."""
DECLARED = ("pipeline_model_type", "instance_type", "task")
"""What MLmodel says under the name of a flavor, of the classes that load a model."""


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """What one task's model has beside the backbone."""

    task: str
    source: str
    """URI of the version that it is from."""
    renamed: Mapping[str, str]
    """By the backbone's tensor, its name in the task's model, where that is another."""
    absent: tuple[str, ...]
    """The backbone's tensors that the task's model has not."""
    config: Mapping[str, Any]
    """What its `config.json` has other than the base's; `None` is a field that is not there. The
    dtype of the weights is the merged ones', whatever older files say of it here."""
    declared: Mapping[str, str]
    """What its MLmodel says of the classes that load it."""
    weights: Path
    """Its own tensors."""

    def describe(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return {
            "format": FORMAT,
            "task": self.task,
            "source": self.source,
            "renamed": dict(self.renamed),
            "absent": list(self.absent),
            "config": dict(self.config),
            "declared": dict(self.declared),
        }

    @property
    def digest(self) -> str:
        """SHA-256 over the tensors and the description, `sha256:…`."""
        weights = tensor_files.weights_digest(self.weights)
        return canonical.digest({"description": self.describe(), "weights": weights})


def keep(
    task: str,
    base: versions.OpenedVersion,
    source: versions.OpenedVersion,
    aligned: alignment.Aligned,
    folder: Path,
) -> OwnHead:
    """Write the two files of a task.

    Args:
        task: what the source is for.
        base: of the merge.
        source: that has the head.
        aligned: its checkpoint, with what was decided of its tensors.
        folder: gets the folder `tasks`.

    Raises:
        TaskError: the task's name can't be a file's.
        CheckpointError: the files can't be written.
    """
    tasks.check_name(task)
    found = aligned.alignment
    own = aligned.source
    weights = folder / FOLDER / f"{task}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    writing.write_all(weights, own, {name: name for name in found.own})
    # What is read from the base, or for a tied output from its embedding, is there by its own name.
    read = {**found.names, **found.resized}
    inside = frozenset(own.names)
    read |= {
        name: theirs
        for name, why in found.base.items()
        if why == "excluded" and (theirs := found.in_source(name)) in inside
    }
    alone = {*found.base, *(name for name in found.tied if name in read)} - {
        name for name, theirs in read.items() if name not in found.tied and theirs in inside
    }
    renamed = {
        name: theirs for name, theirs in read.items() if name != theirs and name not in found.tied
    }
    config = _config(source)
    declared = {key: str(source.declared[key]) for key in DECLARED if source.declared.get(key)}
    if isinstance(own, adapters.Adapted):
        renamed = adapted_heads.renamed(own, read)
        config = adapted_heads.config(own, _config(base))
        declared |= adapted_heads.declared(config)
    kept = OwnHead(
        task=task,
        source=source.resolved.uri,
        renamed=renamed,
        absent=tuple(sorted(name for name in alone if name not in inside)),
        config=_differences(_config(base), config, found),
        declared=declared,
        weights=weights,
    )
    _describe(kept)
    return kept


def pass_on(head: OwnHead, source: versions.OpenedVersion, folder: Path) -> OwnHead:
    """Write the two files of a head that a merge carries, for a merge of that merge.

    Args:
        head: that the source carries.
        source: the merge.
        folder: gets the folder `tasks`.

    Raises:
        CheckpointError: the files can't be written.
    """
    weights = folder / FOLDER / head.weights.name
    weights.parent.mkdir(parents=True, exist_ok=True)
    copies.copy(head.weights, weights)
    passed = dataclasses.replace(head, source=source.resolved.uri, weights=weights)
    _describe(passed)
    return passed


def _describe(head: OwnHead) -> None:
    """Write the JSON file of a head beside its tensors."""
    text = json.dumps(head.describe(), indent=2, ensure_ascii=False) + "\n"
    head.weights.with_suffix(".json").write_text(text, encoding="utf-8")


def differing_fields(base: versions.OpenedVersion, source: versions.OpenedVersion) -> list[str]:
    """The fields of `config.json` in which a source is not as the base, the dtype aside; sorted."""
    ours, theirs = _config(base), library_configs.stored_as(_config(source), _config(base))
    return sorted(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))


def read(folder: Path) -> dict[str, OwnHead]:
    """The heads that a version carries, by task, sorted; none where it carries none of this kind.

    Args:
        folder: of the version.

    Raises:
        TaskError: a file is damaged or missing.
    """
    found = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        origin = f"the head {path}"
        content = json_documents.read(path, origin, errors.TaskError)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            continue
        weights = path.with_suffix(".safetensors")
        if not _is_sound(content, path.stem) or not weights.is_file():
            raise errors.TaskError(
                f"{origin} is damaged: it is not for the task {path.stem!r}, a field is of another "
                f"kind, or {weights.name} is missing. Restore it"
            )
        found[path.stem] = OwnHead(
            task=path.stem,
            source=content["source"],
            renamed=content["renamed"],
            absent=tuple(content["absent"]),
            config=content["config"],
            declared=content["declared"],
            weights=weights,
        )
    return found


def choose(found: Mapping[str, OwnHead], task: str, uri: str) -> OwnHead:
    """The head of a task.

    Raises:
        TaskError: the version carries none for it.
    """
    if task not in found:
        known = f"it has {', '.join(found)}" if found else "it carries none of its own kind"
        raise errors.TaskError(f"{uri} has no head for the task {task!r}; {known}")
    return found[task]


def lay(head: OwnHead, merged: Path, target: Path, *, max_shard_size: int | None = None) -> Path:
    """Write the weights of a task's model: the backbone under its names, and its own tensors.

    Args:
        head: of the task.
        merged: the merged checkpoint.
        target: a `.safetensors` file that does not exist; `config.json` beside it becomes the
            task's.
        max_shard_size: bytes of tensors in one file at most; `None` writes one.

    Returns:
        The file, or the index of the shards.

    Raises:
        CheckpointError: a file is damaged, or can't be written.
        TaskError: `config.json` is no object.
    """
    config = target.with_name(library_configs.FILE)
    with (
        checkpoints.Checkpoint.open(merged) as backbone,
        checkpoints.Checkpoint.open(head.weights) as own,
    ):
        absent = frozenset(head.absent)
        taken = {
            head.renamed.get(name, name): overlays.Taken(0, name)
            for name in backbone.names
            if name not in absent
        }
        taken |= {name: overlays.Taken(1, name) for name in own.names}
        laid = checkpoints.Checkpoint(str(merged), *overlays.lay([backbone, own], taken))
        written = writing.write_all(target, laid, max_shard_size=max_shard_size)
        if config.is_file() and head.config:
            _configure(head, config, laid)
    return written


def _configure(head: OwnHead, config: Path, laid: checkpoints.Checkpoint) -> None:
    """Make the merged model's `config.json` the task's; of the weights it says what they are."""
    content = json_documents.read(config, str(config), errors.TaskError)
    if not isinstance(content, dict):
        raise errors.TaskError(f"{config} is no JSON object; restore it")
    own = dict(head.config)
    if own.get(TIES) is False and not _has_output(laid):
        del own[TIES]  # the output that the source had written out is the merged embedding
    found = library_configs.stored_as(content | own, content)
    os.remove(config)  # it may be a link into the store
    said = {key: value for key, value in found.items() if value is not None}
    config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _has_output(laid: checkpoints.Checkpoint) -> bool:
    """Whether a model has an output with a row per token, of any dtype, beside its embedding."""
    shapes = {laid.info(name).shape for name in naming.embeddings(laid)}
    return any(
        laid.info(name).shape in shapes and not naming.OUTPUTS.isdisjoint(name.split("."))
        for name in laid.names
    )


def carry(heads: Iterable[OwnHead], folder: Path) -> None:
    """Put heads into the folder of a version, in place of those that its base carried."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        content = json_documents.read(path, f"the head {path}", errors.TaskError)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)
    for head in heads:
        (folder / FOLDER).mkdir(exist_ok=True)
        for suffix in (".safetensors", ".json"):
            file = head.weights.with_suffix(suffix)
            copies.copy(file, folder / FOLDER / file.name)


def declare(head: OwnHead, record: Model) -> None:
    """Have what MLmodel says of a model name the classes of a task's model."""
    for said in record.flavors.values():
        said.update({key: value for key, value in head.declared.items() if key in said})


def _config(version: versions.OpenedVersion) -> dict[str, Any]:
    """The `config.json` beside a version's weights; empty without one."""
    path = version.path.with_name(library_configs.FILE)
    if not path.is_file():
        return {}
    origin = f"{library_configs.FILE} of {version.resolved.uri}"
    content = json_documents.read(path, origin, errors.ArchitectureError)
    return content if isinstance(content, dict) else {}


def _differences(
    base: Mapping[str, Any], source: Mapping[str, Any], found: alignment.Alignment
) -> dict[str, Any]:
    """What a configuration has other than the base's; `None` for what it has not.

    Args:
        base: of the base; empty where there is none.
        source: of the source, likewise.
        found: what was decided; where the base's vocabulary stays, so does its size.
    """
    if not source:
        return {}
    stays = found.resized or "excluded" in found.base.values()
    kept = {"vocab_size"} if stays else set()
    theirs = library_configs.stored_as(source, base)
    return {
        key: theirs.get(key)
        for key in {**base, **theirs}
        if base.get(key) != theirs.get(key) and key not in kept
    }


def _is_sound(content: Mapping[str, Any], task: str) -> bool:
    """Whether all fields of a description are of their kinds."""
    texts = [content.get("source"), *_values(content, "renamed"), *_values(content, "declared")]
    absent = content.get("absent")
    return (
        content.get("task") == task
        and isinstance(absent, list)
        and isinstance(content.get("config"), dict)
        and all(isinstance(text, str) for text in (*texts, *absent))
    )


def _values(content: Mapping[str, Any], field: str) -> list[Any]:
    found = content.get(field)
    return list(found.values()) if isinstance(found, dict) else [None]
