"""A version's flat folder loaded by the library that it is for, as a check; no code of it runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import layouts, versions
from mlflow_breadcrumbs.support import json_documents

OPEN_CLIP = "open_clip"
CONFIG = "config.json"


def load(opened: versions.OpenedVersion, folder: Path) -> tuple[str | None, str | None]:
    """Load the folder by the library that it is for: which one, or why none.

    Args:
        opened: the version.
        folder: with its files as `pulling` lays them out.

    Raises:
        IntegrityError: the library refuses it, or finds other tensors than it wants.
    """
    if opened.is_adapter:
        return None, "it is a LoRA adapter, which peft loads on its base"
    if opened.flavor == layouts.OURS:
        import open_clip

        with _refusals(opened, OPEN_CLIP):
            open_clip.create_model_and_transforms(f"local-dir:{folder}")
        return OPEN_CLIP, None
    if (folder / layouts.MODULES).is_file():
        return _load_sentences(opened, folder)
    if opened.flavor == layouts.TRANSFORMERS or _is_transformers(opened, folder):
        return _load_transformers(opened, folder)
    return None, f"nothing here loads models of the flavor {opened.flavor}"


def _is_transformers(opened: versions.OpenedVersion, folder: Path) -> bool:
    """Whether a folder without MLmodel is one that transformers wrote."""
    if opened.flavor != layouts.PLAIN or not (folder / CONFIG).is_file():
        return False
    return "model_type" in _object(opened, folder / CONFIG)


def _load_transformers(
    opened: versions.OpenedVersion, folder: Path
) -> tuple[str | None, str | None]:
    """Load configuration, weights and tokenizer."""
    try:
        import transformers
    except ImportError:
        return None, "transformers is not installed here"
    _load_model(opened, folder, transformers)
    with _refusals(opened, layouts.TRANSFORMERS):
        if any(file.name.startswith("tokenizer") for file in folder.iterdir()):
            transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    return layouts.TRANSFORMERS, None


def _load_model(opened: versions.OpenedVersion, folder: Path, library: Any) -> None:
    """Have transformers load a model, and find all of its tensors."""
    named = _object(opened, folder / CONFIG).get("architectures")
    kind = getattr(library, str(named[0]), None) if isinstance(named, list) and named else None
    with _refusals(opened, layouts.TRANSFORMERS):
        _, found = (kind or library.AutoModel).from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, local_files_only=True
        )
    wrong = [name for key in ("missing_keys", "mismatched_keys") for name in found.get(key, ())]
    if wrong:
        listed = ", ".join(map(str, sorted(map(str, wrong))[:5]))
        raise errors.IntegrityError(
            f"transformers finds {len(wrong)} of the tensors of {opened.resolved.uri} missing or "
            f"of another shape: {listed}. The version is damaged; nothing was kept (--no-load "
            "takes it all the same)"
        )


def _load_sentences(opened: versions.OpenedVersion, folder: Path) -> tuple[str | None, str | None]:
    """Load all modules; those of transformers by that library too, which counts their tensors."""
    try:
        import sentence_transformers
        import transformers
    except ImportError:
        return None, "sentence-transformers is not installed here"
    origin = f"{layouts.MODULES} of {opened.resolved.uri}"
    listed = json_documents.read(folder / layouts.MODULES, origin, errors.IntegrityError)
    modules = [entry for entry in listed if isinstance(entry, dict)]  # the library says the rest
    kinds = [str(entry.get("type")) for entry in modules]
    if foreign := [kind for kind in kinds if not kind.startswith("sentence_transformers.")]:
        return None, f"its module {foreign[0]} is code of its own, which is not run"
    with _refusals(opened, layouts.SENTENCES):
        sentence_transformers.SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=False, local_files_only=True
        )
    for entry, kind in zip(modules, kinds, strict=True):
        if kind.endswith(".Transformer"):
            _load_model(opened, folder / str(entry.get("path", "")), transformers)
    return layouts.SENTENCES, None


def _object(opened: versions.OpenedVersion, file: Path) -> dict[str, Any]:
    """What a JSON file of the version says; nothing if that is no object."""
    origin = f"{file.name} of {opened.resolved.uri}"
    content = json_documents.read(file, origin, errors.IntegrityError)
    return content if isinstance(content, dict) else {}


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
