"""Where a version has its weights, and which of its files belong together, per MLflow flavor.

A layout looks at the paths of a version's files, and in none but the indexes of shards. `of` finds
the one of a version: by what MLmodel names, or for an adapter by its file. A further flavor is a
class more, or none at all where its weights are safetensors in one folder.
"""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, headers
from mlflow_breadcrumbs.support import json_documents

OURS, TRANSFORMERS, SENTENCES = "breadcrumbs", "transformers", "sentence_transformers"
PLAIN = "safetensors"
"""The flavor of a folder without MLmodel, and of what is merged from it."""
COMPONENTS = "components"
"""The folder that MLflow keeps a transformers model's tokenizer and processors in."""
HEADS = "tasks/"
"""Where the heads of tasks lie, which are no part of the weights."""
MODULES = "modules.json"
"""What sentence-transformers has beside its modules."""

Fetch = Callable[[str], Path]
"""Has a file of the version on this machine."""


class Layout(Protocol):
    """How the versions of a flavor are laid out."""

    def checkpoints(self, paths: Sequence[str], fetch: Fetch) -> tuple[str, ...]:
        """All checkpoints: each a file or the index of its shards, the main one first.

        Args:
            paths: of all files, sorted.
            fetch: is asked for indexes.
        """
        ...

    def folders(self, paths: Sequence[str], checkpoints: Sequence[str]) -> tuple[str, ...]:
        """The folders whose files its library wants in one, that of the weights first.

        Args:
            paths: of all files, sorted.
            checkpoints: what `checkpoints` gave.
        """
        ...

    def is_extra(self, path: str) -> bool:
        """Whether a file is only there for those who serve the version."""
        ...


class SafetensorsLayout:
    """Any model whose weights are safetensors: all that there are."""

    def checkpoints(self, paths: Sequence[str], fetch: Fetch) -> tuple[str, ...]:
        """See `Layout.checkpoints`: the one nearest to the top, a sharded one before others."""
        found = candidates(paths)
        indexes = (path for path in found if path.endswith(headers.INDEX_SUFFIX))
        parts = {path for index in indexes for path in _shards(index, fetch(index))}
        return tuple(sorted((path for path in found if path not in parts), key=_rank))

    def folders(self, paths: Sequence[str], checkpoints: Sequence[str]) -> tuple[str, ...]:
        """See `Layout.folders`: the one that holds all checkpoints."""
        return (bundles.of(checkpoints).folder,)

    def is_extra(self, path: str) -> bool:
        """See `Layout.is_extra`: whatever is there may be the model's."""
        return False


class OpenClipLayout(SafetensorsLayout):
    """This package's own: one file, and the heads of tasks."""

    def is_extra(self, path: str) -> bool:
        """See `Layout.is_extra`: the package's code, a hundred files once."""
        return path.startswith("code/")


class TransformersLayout(SafetensorsLayout):
    """The model in one folder, its tokenizer and its processors in others."""

    def folders(self, paths: Sequence[str], checkpoints: Sequence[str]) -> tuple[str, ...]:
        """See `Layout.folders`."""
        below = (path.split("/") for path in paths if path.startswith(f"{COMPONENTS}/"))
        names = {parts[1] for parts in below if len(parts) > 2}
        components = (f"{COMPONENTS}/{name}" for name in sorted(names))
        return (*super().folders(paths, checkpoints), *components)


class AdapterLayout(TransformersLayout):
    """A LoRA adapter of peft; a base that lies beside it is what the merge names."""

    def checkpoints(self, paths: Sequence[str], fetch: Fetch) -> tuple[str, ...]:
        """See `Layout.checkpoints`: the adapter alone."""
        return tuple(path for path in candidates(paths) if _is_adapter(path))


class SentencesLayout(SafetensorsLayout):
    """Modules one after another, each in its folder, the first one maybe in that of all."""

    def folders(self, paths: Sequence[str], checkpoints: Sequence[str]) -> tuple[str, ...]:
        """See `Layout.folders`: the one with the list of modules."""
        (folder,) = super().folders(paths, checkpoints)
        while folder and posixpath.join(folder, MODULES) not in paths:
            folder = posixpath.dirname(folder)
        return (folder,)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {OURS: OpenClipLayout(), TRANSFORMERS: TransformersLayout(), SENTENCES: SentencesLayout()}
)
"""By the flavor that MLmodel names; every other one is `SafetensorsLayout`."""


def of(flavor: str, paths: Sequence[str]) -> Layout:
    """The layout of a version.

    Args:
        flavor: that MLmodel names.
        paths: of all files.
    """
    if any(_is_adapter(path) for path in paths):
        return AdapterLayout()
    if flavor not in LAYOUTS and any(posixpath.basename(path) == MODULES for path in paths):
        return LAYOUTS[SENTENCES]
    return LAYOUTS.get(flavor) or SafetensorsLayout()


def candidates(paths: Sequence[str]) -> list[str]:
    """The files of weights: safetensors, and indexes of shards."""
    return [path for path in paths if path.endswith(bundles.SUFFIXES) and path[:6] != HEADS]


def pickles(paths: Sequence[str]) -> list[str]:
    """Weights that were saved as pickles, in folders that have them in no other form."""
    known = {posixpath.dirname(path) for path in candidates(paths)}
    return [
        path
        for path in paths
        if posixpath.dirname(path) not in known
        and posixpath.basename(path).startswith("pytorch_model")
        and path.endswith(".bin")
    ]


def check(uri: str, flavor: str, paths: Sequence[str], checkpoints: Sequence[str]) -> None:
    """Raise `RegistryError` unless a version has weights that can be read, all of them.

    Args:
        uri: of the version.
        flavor: that MLmodel names.
        paths: of all files.
        checkpoints: what `Layout.checkpoints` gave.
    """
    adapter = any(map(_is_adapter, checkpoints))
    if adapter and len(checkpoints) > 1:
        raise errors.RegistryError(
            f"{uri} holds the adapters {', '.join(checkpoints)}, and a source is one; register "
            "each as a version of its own"
        )
    unread = [] if adapter else pickles(paths)
    if checkpoints and not unread and (flavor != OURS or len(checkpoints) == 1):
        return
    found = ", ".join((*checkpoints, *unread)) or "no safetensors"
    raise errors.RegistryError(
        f"{uri} was logged by the flavor {flavor!r} and holds {found}; a merge reads safetensors "
        f"and never a pickle. {_REMEDIES.get(flavor, _SAVE)}"
    )


_SAVE = (
    "Save the model in a folder (safetensors.torch.save_model(model, 'FOLDER/model.safetensors')), "
    "log that in a run (mlflow.log_artifacts('FOLDER', 'model')), and make it a version there "
    "(MlflowClient().create_model_version(NAME, mlflow.get_artifact_uri('model'), RUN_ID)). An "
    "open_clip model is registered by `mlflow-breadcrumbs import CHECKPOINT --architecture … "
    "--registered-model …`"
)
_REMEDIES = {
    OURS: "Its one file is open_clip_model.safetensors; register the model again",
    TRANSFORMERS: "Load the model, and log it again with its weights "
    "(mlflow.transformers.log_model with save_pretrained=True); that writes safetensors",
    SENTENCES: "Load the model with a current sentence-transformers, and log it again; that "
    "writes safetensors",
}
"""What to do about weights that can't be read, by flavor."""


def _shards(index: str, file: Path) -> set[str]:
    """The files that an index names; none where it is damaged, which `headers` explains."""
    try:
        content = json_documents.read(file, index, errors.CheckpointError)
        named = content["weight_map"].values() if isinstance(content, dict) else ()
        return {posixpath.join(posixpath.dirname(index), name) for name in named}
    except (errors.CheckpointError, KeyError, AttributeError, TypeError):
        return set()


def _is_adapter(path: str) -> bool:
    return posixpath.basename(path) == headers.ADAPTER_WEIGHTS


def _rank(path: str) -> tuple[int, bool, bool, str]:
    """The smaller, the more it is the main checkpoint."""
    name = posixpath.basename(path)
    return (
        path.count("/"),
        not name.endswith(headers.INDEX_SUFFIX),
        not name.startswith(f"{bundles.USUAL}."),
        path,
    )
