"""A version as the flat folder that its own library loads: weights, configuration, tokenizer.

MLflow keeps a transformers model in a folder of its own beside those of its tokenizer and
processors; `from_pretrained` and vLLM want all of it in one. What is MLflow's own stays behind.
"""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.flavor import foreign, libraries, own_heads
from mlflow_breadcrumbs.registry import layouts, versions
from mlflow_breadcrumbs.support import copies, progress

LINEAGE = "lineage.json"
LEFT_BEHIND = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "registered_model_meta",
        "code",
        "input_example.json",
        "serving_input_example.json",
    }
)
"""MLflow's own, in a version whose files are its library's besides."""


@dataclasses.dataclass(frozen=True)
class PulledVersion:
    """What came here."""

    uri: str
    folder: Path
    flavor: str
    weights_digest: str
    recorded: bool
    """Whether that digest was on record, and so has been held against it."""
    files: tuple[str, ...]
    """In the folder, sorted."""
    nbytes: int
    loaded: str | None
    """By which library the folder was loaded; `None` if by none."""
    note: str | None = None
    """Why it was not, where that was not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"folder": str(self.folder), "files": list(self.files)}


def pull(
    uri: str,
    folder: str | Path,
    *,
    task: str | None = None,
    load: bool = True,
    show: progress.Progress = progress.silent,
) -> PulledVersion:
    """Put a version's model into a folder of this machine, whole or not at all.

    Args:
        uri: of the version.
        folder: that does not exist yet, or is empty.
        task: with the head that the version carries for it; `None` is the version as it is.
        load: also load it by its own library, where `libraries` knows that.
        show: is told what is done.

    Raises:
        RegistryError: the version is not there, or has no safetensors.
        TaskError: it carries no head for the task.
        IntegrityError: its bytes are not those that were registered, or its library can't load
            them; nothing is left.
        OutputError: the folder is not empty, or can't be written to.
    """
    target = Path(folder).absolute()
    _check_empty(target)
    resolved = versions.resolve(uri)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with (
        versions.workspace() as space,
        show(f"pull {resolved.uri}", total=3, unit="steps") as advance,
    ):
        opened = versions.open_version(resolved, space)
        advance(1)
        digest = checkpoints.weights_digest(opened.weights)
        versions.check_digest(resolved, digest)
        head = None if task is None else _head(opened, task)
        advance(1)
        try:
            temporary.mkdir(parents=True)
            for source, name in _flat(opened):
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                copies.copy(source, place)
            if head is not None:
                _give_head(opened, head, temporary)
            loaded, note = libraries.load(opened, temporary) if load else (None, None)
            if target.exists():
                target.rmdir()
            os.replace(temporary, target)
        except OSError as error:
            if isinstance(error, errors.BreadcrumbsError):
                raise
            raise errors.OutputError(
                f"cannot write the folder {target}: {error.strerror or error}; name another"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        advance(1)
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    return PulledVersion(
        uri=resolved.uri,
        folder=target,
        flavor=opened.flavor,
        weights_digest=digest,
        recorded=resolved.recorded_digest is not None,
        files=tuple(str(path.relative_to(target)) for path in files),
        nbytes=sum(path.stat().st_size for path in files),
        loaded=loaded,
        note=note,
    )


def _head(opened: versions.OpenedVersion, task: str) -> own_heads.OwnHead:
    """The head that a version of another flavor carries for a task."""
    if opened.flavor == layouts.OURS:
        raise errors.TaskError(
            f"{opened.resolved.uri} is an open_clip model, which has one folder for all of its "
            "tasks, with their heads in it; leave --task out"
        )
    return own_heads.choose(own_heads.read(opened.folder), task, opened.resolved.uri)


def _give_head(opened: versions.OpenedVersion, head: own_heads.OwnHead, folder: Path) -> None:
    """Have a flat folder hold the model of a task, in place of the backbone."""
    for file in foreign.files_of(folder / opened.path.name):
        file.unlink()
    target = folder / Path(foreign.weights_file(opened)).name
    own_heads.lay(head, opened.weights, target, max_shard_size=foreign.shard_size(opened))


def _check_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.OutputError(
            f"{target} exists and is no empty folder; name another, so that nothing is mixed"
        )


def _flat(opened: versions.OpenedVersion) -> Iterator[tuple[Path, str]]:
    """The files to take, each with its name in the folder.

    Raises:
        IntegrityError: two files have one name.
    """
    root = opened.folder
    seen: dict[str, Path] = {}
    for base in opened.folders:
        for file in sorted(base.rglob("*")):
            name = str(file.relative_to(base))
            if not file.is_file() or (base == root and name.split("/")[0] in LEFT_BEHIND):
                continue
            if name in seen and seen[name].read_bytes() != file.read_bytes():
                raise errors.IntegrityError(
                    f"{opened.resolved.uri} has two files {name}, {seen[name].relative_to(root)} "
                    f"and {file.relative_to(root)}, which differ; take them apart yourself "
                    "(mlflow artifacts download)"
                )
            if name not in seen:
                seen[name] = file
                yield file, name
    if LINEAGE not in seen and (root / LINEAGE).is_file():
        yield root / LINEAGE, LINEAGE
