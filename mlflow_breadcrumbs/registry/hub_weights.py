"""Versions that name a repository on Hugging Face's hub in place of weights, pinned to a commit.

`mlflow.transformers.log_model(…, save_pretrained=False)` logs such versions. Their files are looked
for in the hub's cache on this machine (HF_HOME), and laid out as the version would be that carries
them itself. A version is somebody's word, so nothing is downloaded on it, unless who runs this says
that it may be (`DOWNLOAD`); then it is that commit, from the hub that is configured, and neither
code nor a pickle.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import headers
from mlflow_breadcrumbs.registry import layouts

DOWNLOAD = "BREADCRUMBS_HUB_DOWNLOAD"
"""The variable that, as `true`, lets a pinned commit be downloaded that is not in the cache."""
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is taken of a repository's own folder: weights, configuration, tokenizer."""
NAMES = ("model.safetensors.index.json", "model.safetensors")
"""What transformers calls a checkpoint."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubReference:
    """A commit of a repository."""

    repository: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repository} at {self.commit}"


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """A version with the files that it only names."""

    folder: Path
    """As its flavor would have written it; the large files are links."""
    path: Path
    """The checkpoint in there."""
    original: Path
    """The same in the hub's cache."""


def reference(declared: Mapping[str, Any], version: str) -> HubReference | None:
    """What a version of the flavor `transformers` refers to; `None` where it has weights itself.

    Args:
        declared: what MLmodel says under the flavor's name.
        version: its URI.

    Raises:
        IntegrityError: it refers to what is no commit of a repository.
    """
    commit = declared.get("source_model_revision")
    if commit is None or declared.get("peft_adaptor"):
        return None
    return _pinned(declared.get("source_model_name"), commit, version)


def lay_out(
    refers: HubReference,
    declared: Mapping[str, Any],
    root: Path,
    folder: Path,
    version: str,
) -> LaidOut:
    """Put the files that a version names beside those that it has.

    Args:
        refers: to the weights.
        declared: what MLmodel says under the flavor's name.
        root: the version's own files.
        folder: for the result; what is there already is taken.
        version: its URI.

    Raises:
        RegistryError: a file is not in the cache and may not be downloaded, or there is no
            safetensors checkpoint.
    """
    snapshot = _snapshot(refers, version)
    name = _checkpoint(snapshot)
    if name is None:
        raise errors.RegistryError(
            f"{version} names {refers} on Hugging Face's hub, which has no "
            f"{' or '.join(reversed(NAMES))}; a merge reads one safetensors checkpoint and never "
            "a pickle. Log the model with its weights (save_pretrained=True)"
        )
    if not folder.exists():
        model = Model.load(str(root / MLMODEL_FILE_NAME))
        shutil.copytree(root, folder)
        _link(snapshot, folder / "model")
        for key in declared.get("components", []):
            own = _pinned(declared.get(f"{key}_name"), declared.get(f"{key}_revision"), version)
            _link(_snapshot(own, version), folder / "components" / key, weights=False)
        model.flavors[layouts.TRANSFORMERS] = dict(_whole(declared))
        model.save(str(folder / MLMODEL_FILE_NAME))
    return LaidOut(folder, folder / "model" / name, snapshot / name)


def _pinned(repository: Any, commit: Any, version: str) -> HubReference:
    """A reference that names no path and no host."""
    named = isinstance(repository, str) and _REPOSITORY.fullmatch(repository)
    if not named or not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise errors.IntegrityError(
            f"the MLmodel file of {version} names {str(repository)[:80]!r} at "
            f"{str(commit)[:80]!r}, which is no commit of a repository on Hugging Face's hub. "
            "Register the model again"
        )
    return HubReference(str(repository), commit)


def _whole(declared: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the flavor says of a version that has its files itself."""
    parts = declared.get("components", [])
    gone = {"source_model_revision"}
    gone |= {f"{part}_{field}" for part in parts for field in ("name", "revision")}
    yield from ((key, value) for key, value in declared.items() if key not in gone)
    yield "model_binary", "model"


def _snapshot(refers: HubReference, version: str) -> Path:
    """The folder of a commit in the hub's cache.

    Raises:
        RegistryError: it is not there, and can't be or may not be downloaded.
    """
    import huggingface_hub

    known: dict[str, Any] = {"repo_id": refers.repository, "revision": refers.commit}
    may = os.environ.get(DOWNLOAD, "").lower() in ("1", "true")
    why = f"it may not be downloaded: {DOWNLOAD} is not true"
    try:
        found = Path(huggingface_hub.snapshot_download(**known, local_files_only=True))
        if not may or _checkpoint(found) is not None:
            return found
    except (huggingface_hub.errors.HFValidationError, OSError):
        pass
    if may:
        try:
            return Path(huggingface_hub.snapshot_download(**known, allow_patterns=list(PATTERNS)))
        except Exception as error:  # noqa: BLE001  its client's, the network's, the disk's
            why = f"it can't be downloaded: {str(error).splitlines()[0][:200]}"
    raise errors.RegistryError(
        f"{version} has no weights of its own: it names {refers} on Hugging Face's hub, which is "
        f"not in the cache of this machine, and {why}. Bring it here (`hf download "
        f"{refers.repository} --revision {refers.commit}`), or log the model with its weights "
        "(save_pretrained=True)"
    )


def _checkpoint(snapshot: Path) -> str | None:
    """What the checkpoint of a repository is called; `None` where it has none, or only a part."""
    for name in NAMES:
        file = snapshot / name
        if not file.is_file():
            continue
        try:
            headers.read(file)
        except errors.CheckpointError:
            continue
        return name
    return None


def _link(snapshot: Path, folder: Path, *, weights: bool = True) -> None:
    """Lay the files of a repository into a folder: the small ones copied, the weights linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in PATTERNS:
        for file in snapshot.glob(pattern):
            large = file.name.endswith((".safetensors", headers.INDEX_SUFFIX))
            if not large:
                shutil.copyfile(file, folder / file.name)
            elif weights:
                (folder / file.name).symlink_to(file)
