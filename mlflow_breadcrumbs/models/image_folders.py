"""What a folder of images holds: its splits, its classes, its images, and what is none of these.

Left out are what other programs put beside images (`JUNK`), hidden files and folders, and files
that no image format has the suffix of. All of it is counted and logged; nothing else is left out.
A tree that can be read in two ways is refused with both.
"""

import collections
import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import decoding

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""What folders and files of a split are called, in lower case."""

JUNK = frozenset(
    {
        *("#recycle", "$recycle.bin", "@eadir", "@tmp", "__macosx", "__pycache__", "lost+found"),
        *("system volume information", "desktop.ini", "thumbs.db"),
    }
)
"""What file managers, archives and network drives leave behind, in lower case."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Skipped:
    """How much of a folder is no image, by what it is."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))


def is_foreign(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or another program's."""
    return name.startswith(".") or name.lower() in JUNK


def classes(root: Path) -> list[Path]:
    """The folders of the classes, sorted."""
    return sorted(each for each in root.iterdir() if each.is_dir() and not is_foreign(each.name))


def images(folder: Path, skipped: Skipped) -> list[Path]:
    """The images in a folder and below it, sorted; what else is there is counted."""
    found = []
    for path in _files(folder, skipped):
        suffix = path.suffix.lower()
        if suffix not in decoding.SUFFIXES:
            skipped.counts[f"of the kind '{suffix}'" if suffix else "without a suffix"] += 1
        elif path.is_file():
            found.append(path)
        else:
            skipped.counts["that are no plain files"] += 1
    return sorted(found)


def by_class(root: Path) -> dict[str, list[Path]]:
    """The images of every class folder; what is skipped is logged.

    Raises:
        TaskError: a folder can't be read.
    """
    skipped = Skipped()
    with _readable(root):
        found = {folder.name: images(folder, skipped) for folder in classes(root)}
        for each in root.iterdir():
            if not each.is_dir():
                skipped.counts["beside the class folders"] += 1
            elif is_foreign(each.name):
                skipped.counts[f"in '{each.name}'"] += _count(each)
    if skipped.counts:
        _logger.warning(
            "'%s': %d images in %d classes. Files that were skipped: %s.",
            root,
            sum(map(len, found.values())),
            len(found),
            skipped,
        )
    return found


def splits(root: Path) -> dict[str, Path]:
    """The folders of the splits, or the root itself as `all` where its folders are classes.

    Raises:
        TaskError: there is no such folder, it can't be read, or it can be read both ways.
    """
    if not root.is_dir():
        raise errors.TaskError(f"There is no image folder '{root}'.")
    with _readable(root):
        return _splits(root)


def _splits(root: Path) -> dict[str, Path]:
    folders = classes(root)
    named = [each for each in folders if each.name.lower() in SPLIT_WORDS]
    with_classes = [each for each in named if any(_has_images(inner) for inner in classes(each))]
    others = [each for each in folders if each not in named and _has_images(each)]
    empty = [each for each in named if not _has_images(each)]
    found: dict[str, Path] = {}
    for each in with_classes:
        split = SPLIT_WORDS[each.name.lower()]
        if split in found:
            raise errors.TaskError(
                f"'{root}' has '{found[split].name}' and '{each.name}', which are both the {split} "
                "split. Keep one of them, or name a folder per split in the task file."
            )
        found[split] = each
    if not named or (not with_classes and others):
        return {"all": root}  # a class may be called train
    if others:
        raise _two_readings(root, with_classes, f"the others are {_names(others)}")
    if len(with_classes) + len(empty) < len(named):
        bare = [each for each in named if each not in with_classes and each not in empty]
        raise _two_readings(root, named, f"{_names(bare)} holds images without folders of classes")
    return found or {"all": root}


def _two_readings(root: Path, folders: list[Path], why: str) -> errors.TaskError:
    splits_of = ", ".join(f"{SPLIT_WORDS[each.name.lower()]}: {each}" for each in folders)
    return errors.TaskError(
        f"'{root}' can be read in two ways: {_names(folders)} as splits, or as classes; {why}. "
        f"If they are splits, write 'folder: {{{splits_of}}}' and have a folder per class in each; "
        "if they are classes, give them names that no split has."
    )


def _names(folders: list[Path]) -> str:
    return ", ".join(f"'{each.name}'" for each in folders)


def _has_images(folder: Path) -> bool:
    return any(
        path.suffix.lower() in decoding.SUFFIXES and path.is_file()
        for path in _files(folder, Skipped())
    )


def _files(folder: Path, skipped: Skipped) -> Iterator[Path]:
    """The files below a folder that are not another program's; links to folders aren't followed."""
    for place, inner, names in os.walk(folder, onerror=_raise):
        for name in list(inner):
            if is_foreign(name):
                inner.remove(name)
                skipped.counts[f"in '{name}'"] += _count(Path(place, name))
        for name in names:
            if is_foreign(name):
                skipped.counts["hidden or another program's"] += 1
            else:
                yield Path(place, name)


def _count(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def _readable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.TaskError(f"The folder '{root}' can't be read: {error}.") from error
