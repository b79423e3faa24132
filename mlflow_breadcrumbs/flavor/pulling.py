"""A version as the flat folder that its own library loads: weights, configuration, tokenizer.

MLflow keeps a transformers model in a folder of its own beside those of its tokenizer and
processors; `from_pretrained` and vLLM want all of it in one. What is MLflow's own stays behind.
"""

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.flavor import foreign, own_heads
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import copies, json_documents, progress

TRANSFORMERS = "transformers"
LINEAGE = "lineage.json"
COMPONENTS = "components"
"""The folder that MLflow keeps a transformers model's tokenizer and processors in."""
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
        load: also load it by its own library, where that is open_clip or transformers.
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
            loaded, note = _load(opened, temporary) if load else (None, None)
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
    if opened.flavor == flavor.FLAVOR_NAME:
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
    root, weights = opened.folder, opened.path.parent
    seen: dict[str, Path] = {}
    for base in (weights, *_components(opened)):
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


def _components(opened: versions.OpenedVersion) -> list[Path]:
    """The folders beside the weights' whose files belong into the same one."""
    folder = opened.folder / COMPONENTS
    if opened.flavor != TRANSFORMERS or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _load(opened: versions.OpenedVersion, folder: Path) -> tuple[str | None, str | None]:
    """Load the folder by the library that it is for: which one, or why none.

    Raises:
        IntegrityError: the library refuses it, or finds other tensors than it wants.
    """
    if opened.is_adapter:
        return None, "it is a LoRA adapter, which peft loads on its base"
    if opened.flavor == flavor.FLAVOR_NAME:
        import open_clip

        with _refusals(opened, "open_clip"):
            open_clip.create_model_and_transforms(f"local-dir:{folder}")
        return "open_clip", None
    if opened.flavor != TRANSFORMERS:
        return None, f"nothing here loads models of the flavor {opened.flavor}"
    try:
        import transformers
    except ImportError:
        return None, "transformers is not installed here"
    _load_transformers(opened, folder, transformers)
    return TRANSFORMERS, None


def _load_transformers(opened: versions.OpenedVersion, folder: Path, library: Any) -> None:
    """Load configuration, weights and tokenizer; no code from the folder runs."""
    config = json_documents.read(
        folder / "config.json", f"config.json of {opened.resolved.uri}", errors.IntegrityError
    )
    named = config.get("architectures") if isinstance(config, dict) else None
    kind = getattr(library, str(named[0]), None) if isinstance(named, list) and named else None
    with _refusals(opened, TRANSFORMERS):
        loader = kind or library.AutoModel
        _, found = loader.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, local_files_only=True
        )
        if any(file.name.startswith("tokenizer") for file in folder.iterdir()):
            library.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    wrong = [name for key in ("missing_keys", "mismatched_keys") for name in found.get(key, ())]
    if wrong:
        listed = ", ".join(map(str, sorted(map(str, wrong))[:5]))
        raise errors.IntegrityError(
            f"transformers finds {len(wrong)} of the tensors of {opened.resolved.uri} missing or "
            f"of another shape: {listed}. The version is damaged; nothing was kept (--no-load "
            "takes it all the same)"
        )


@contextlib.contextmanager
def _refusals(opened: versions.OpenedVersion, library: str) -> Iterator[None]:
    """Turn whatever a library raises into one message."""
    try:
        yield
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise errors.IntegrityError(
            f"{library} can't load {opened.resolved.uri}: {said}. Nothing was kept; --no-load "
            "takes the files all the same"
        ) from error
