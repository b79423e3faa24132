"""Task files: which images, which class names, which templates.

```yaml
tasks:
  - name: digits                          # letters, digits, '.', '_', '-'
    classes: [zero, one, two]             # optional where the images carry names
    templates: ["a photo of the digit {}."]
    images: data/digits                   # or {parquet: …}, or {torchvision: MNIST, root: …}
    limit: 500                            # optional: images per split
```

Paths are relative to the task file, and each may be an MLflow artifact URI (`runs:/…`,
`models:/…`, `mlflow-artifacts:/…`), the task file itself too. `folder` and `parquet` take either
one path or a mapping of `train`, `validation` and `test` to paths; `images: data/digits` is short
for `images: {folder: data/digits}`.

Splits: what the source calls train, validation and test. Without splits, a fifth of every class
is the test split; without a validation split, a tenth of the training images is. The choice is
always the same.

Class names: where the images have names (folders, Hugging Face metadata, torchvision), `classes`
puts these names in the task's order, or maps them to better ones (`{n01440764: tench}`). Where
they have only numbers, it names label 0, 1, ….
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import image_folders, image_sets, readers
from mlflow_breadcrumbs.support import documents, validation

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
Fetch = Callable[[str], Path]
"""Brings the file or folder behind a URI here, or raises `TaskError`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task: names, templates, and perhaps images."""

    name: str
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    """Each with `{}` where the class name goes."""
    declared_classes: tuple[str, ...] | dict[str, str] | None = None
    """The `classes` of the task file."""
    limit: int | None = None
    """Most images per split."""
    load: Callable[[], dict[str, image_sets.Pool]] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    """Gives the pools by split, or one pool `all`; None for a task without images."""

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label.

        Raises:
            TaskError: Neither the task file nor the images name them, or they contradict.
        """
        if self.load is None:
            if not isinstance(self.declared_classes, tuple):
                raise errors.TaskError(
                    f"Task '{self.name}' has no images, so it needs a list of 'classes'."
                )
            return self._checked(self.declared_classes)
        names = next(iter(self._pools.values())).names
        if names is None:
            if not isinstance(self.declared_classes, tuple):
                raise errors.TaskError(
                    f"The images of task '{self.name}' carry no class names: list them, label 0 "
                    "first, as 'classes' in the task file."
                )
            return self._checked(self.declared_classes)
        return self._checked(tuple(self._named(names).values()))

    def images(self, split: Split) -> image_sets.ImageSet:
        """Open one split.

        Raises:
            TaskError: The images are missing, unlabelled or in classes that the task does not
                have, or the split is empty.
        """
        if split not in SPLITS:
            raise errors.TaskError(f"Unknown split '{split}': give {', '.join(SPLITS)}.")
        classes = self.classes
        pool = self._split(split)
        if not pool.examples:
            raise errors.TaskError(
                f"The {split} split of task '{self.name}' is empty. Add images, or name a "
                f"{split} split in the task file."
            )
        images = image_sets.ImageSet(f"{self.name}/{split}", classes, self._labelled(pool))
        return images.subset(self.limit)

    @property
    def has_images(self) -> bool:
        """Whether the task file says where images are."""
        return self.load is not None

    @functools.cached_property
    def _pools(self) -> dict[str, image_sets.Pool]:
        if self.load is None:
            raise errors.TaskError(
                f"Task '{self.name}' has no images. Add 'images' to it in the task file."
            )
        pools: dict[str, image_sets.Pool] = self.load()
        return pools

    def _split(self, split: Split) -> image_sets.Pool:
        pools = dict(self._pools)
        if "all" in pools:
            pools["train"], pools["test"] = image_sets.divide(pools.pop("all"), TEST_FRACTION)
        if "validation" not in pools and "train" in pools:
            pools["train"], pools["validation"] = image_sets.divide(
                pools["train"], VALIDATION_FRACTION
            )
        if split not in pools:
            raise errors.TaskError(
                f"Task '{self.name}' has no {split} split; it has {', '.join(sorted(pools))}."
            )
        return pools[split]

    def _labelled(self, pool: image_sets.Pool) -> tuple[image_sets.Example, ...]:
        """Number the labels as the task's classes are numbered."""
        if pool.names is None:
            for example in pool.examples:
                if example.label >= len(self.classes):
                    raise errors.TaskError(
                        f"Task '{self.name}': the label {example.label} {example.origin} is "
                        f"outside its {len(self.classes)} classes (0 to {len(self.classes) - 1})."
                    )
            return pool.examples
        ours = [self.classes.index(name) for name in self._in_label_order(pool.names)]
        return tuple(dataclasses.replace(e, label=ours[e.label]) for e in pool.examples)

    def _named(self, names: tuple[str, ...]) -> dict[str, str]:
        """Map the source's names to the task's, in the task's order."""
        declared = self.declared_classes
        if declared is None:
            return {name: name for name in names}
        mapping = declared if isinstance(declared, dict) else {name: name for name in declared}
        missing = sorted(set(mapping) - set(names))
        extra = sorted(set(names) - set(mapping))
        if missing or extra:
            raise errors.TaskError(
                f"Task '{self.name}': 'classes' and the names that the images carry differ. "
                f"Only in 'classes': {', '.join(missing) or '-'}. "
                f"Only in the images: {', '.join(extra) or '-'}. "
                "To rename, write 'classes' as a mapping of the images' names to yours."
            )
        return mapping

    def _in_label_order(self, names: tuple[str, ...]) -> list[str]:
        mapping = self._named(names)
        return [mapping[name] for name in names]

    def _checked(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2:
            raise errors.TaskError(
                f"Task '{self.name}' has {len(classes)} class ({', '.join(classes)}); "
                "classification needs at least two."
            )
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise errors.TaskError(
                f"Task '{self.name}' names a class twice: {', '.join(twice)}. Names must differ."
            )
        return classes


def load_tasks(path: str | Path, fetch: Fetch | None = None) -> tuple[Task, ...]:
    """Read a task file.

    Args:
        path: A YAML file, or the URI of one.
        fetch: Where files may be behind URIs; `registry.task_files` gives MLflow's.

    Raises:
        TaskError: The file is missing or not a valid task file; every fault is listed.
    """
    origin = f"Task file '{path}'"
    if _URI.match(str(path)):
        base, _, name = str(path).rpartition("/")
    else:
        base, name = str(Path(path).parent), Path(path).name
    place = _Place(base, fetch)
    document = documents.read(place.local(name), origin, errors.TaskError)
    try:
        specs = _File.model_validate(document.content).tasks
    except pydantic.ValidationError as error:
        found = validation.faults(error, _File, document.root, "the file")
        raise errors.TaskError(f"{origin}: {'; '.join(found)}.") from error
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.TaskError(f"{origin} names a task twice: {', '.join(twice)}.")
    return tuple(
        Task(
            name=spec.name,
            templates=spec.templates,
            declared_classes=spec.classes,
            limit=spec.limit,
            load=functools.partial(spec.images.load, place) if spec.images else None,
        )
        for spec in specs
    )


def find(tasks: Sequence[Task], name: str) -> Task:
    """Give the task of that name.

    Raises:
        TaskError: There is none.
    """
    for task in tasks:
        if task.name == name:
            return task
    raise errors.TaskError(
        f"There is no task '{name}' in the task file; it has "
        f"{', '.join(task.name for task in tasks) or 'none'}."
    )


def check_name(name: str) -> str:
    """Give the name back if it can name a metric and a file.

    Raises:
        TaskError: It can't.
    """
    if not _NAME.fullmatch(name):
        raise errors.TaskError(
            f"'{name}' can't name a task: use letters (a-z, A-Z), digits, '.', '_' and '-', "
            "and start with a letter or a digit; the name becomes a metric and a file."
        )
    return name


def _text(value: object) -> object:
    """Let class names be written as numbers, but not as YAML's yes and no."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this name as {value}; put it in quotes")
    return str(value) if isinstance(value, int | float) else value


def _images(value: object) -> object:
    """A folder alone, as the mapping that it is short for."""
    if isinstance(value, str):
        return {"folder": value}
    if not isinstance(value, dict | None):
        raise ValueError(
            f"it is {validation.shown(value)}, and must be a folder, or a mapping with one of "
            "folder, parquet and torchvision"
        )
    return value


def _template(value: str) -> str:
    if value.count("{}") != 1:
        raise ValueError(f"'{value}' needs {{}} exactly once, where the class name goes")
    return value


_Text = Annotated[str, pydantic.BeforeValidator(_text), pydantic.Field(min_length=1)]
_Template = Annotated[str, pydantic.AfterValidator(_template)]
_Paths = str | dict[Split, str]


@dataclasses.dataclass(frozen=True)
class _Place:
    """What the paths in a task file are relative to."""

    base: str
    """A folder, or the URI of one."""
    fetch: Fetch | None

    def local(self, path: str) -> Path:
        """Give the file or folder on this machine; what is behind a URI is fetched."""
        if not _URI.match(path):
            if not _URI.match(self.base):
                return Path(self.base) / path
            path = f"{self.base}/{path}"
        if self.fetch is None:
            raise errors.TaskError(f"'{path}' is not on this machine; give a file or folder here.")
        return self.fetch(path)


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _Images(_Strict):
    folder: _Paths | None = None
    parquet: _Paths | None = None
    torchvision: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    root: str = "."
    download: bool = False
    options: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [n for n in ("folder", "parquet", "torchvision") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of folder, parquet and torchvision, "
                f"not {' and '.join(given) or 'none'}"
            )
        return self

    def load(self, place: "_Place") -> dict[str, image_sets.Pool]:
        """Give the pools by split; paths are relative to the place."""
        if self.folder is not None:
            return readers.read_folders(_folder_splits(self.folder, place))
        if self.parquet is not None:
            return {
                split: readers.read_parquet(
                    paths, image_column=self.image_column, label_column=self.label_column
                )
                for split, paths in _parquet_splits(self.parquet, place).items()
            }
        return readers.read_torchvision(
            str(self.torchvision),
            root=place.local(self.root),
            download=self.download,
            options=self.options,
        )


class _TaskSpec(_Strict):
    name: Annotated[_Text, pydantic.AfterValidator(check_name)]
    classes: (
        Annotated[tuple[_Text, ...], pydantic.Field(min_length=1)] | dict[_Text, _Text] | None
    ) = None
    templates: Annotated[tuple[_Template, ...], pydantic.Field(min_length=1)] = DEFAULT_TEMPLATES
    images: Annotated[_Images | None, pydantic.BeforeValidator(_images)] = None
    limit: Annotated[int, pydantic.Field(ge=1)] | None = None


class _File(_Strict):
    tasks: Annotated[tuple[_TaskSpec, ...], pydantic.Field(min_length=1)]


def _folder_splits(paths: _Paths, place: _Place) -> dict[str, Path]:
    if isinstance(paths, dict):
        return {split: place.local(path) for split, path in paths.items()}
    found = image_folders.splits(place.local(paths))
    return {split: found[split] for split in (*SPLITS, "all") if split in found}


def _parquet_splits(paths: _Paths, place: _Place) -> dict[str, list[Path]]:
    if isinstance(paths, dict):
        return {split: _parquet_files(place.local(path)) for split, path in paths.items()}
    files = _parquet_files(place.local(paths))
    by_word: dict[str, list[Path]] = {}
    for file in files:
        word = re.split(r"[-_.]", file.name)[0]  # train-00000-of-00003.parquet
        by_word.setdefault(image_folders.SPLIT_WORDS.get(word.lower(), "all"), []).append(file)
    if len(files) == 1 or set(by_word) == {"all"}:
        return {"all": files}
    if "all" in by_word:
        raise errors.TaskError(
            f"'{paths}' mixes files of known splits with others: "
            f"{', '.join(file.name for file in by_word['all'])}. Give 'parquet' as a mapping of "
            "train and test to paths."
        )
    return by_word


def _parquet_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*.parquet")
            if not any(map(image_folders.is_foreign, file.relative_to(path).parts))
        )
        if not files:
            raise errors.TaskError(f"There are no *.parquet files in '{path}'.")
        return files
    if not path.is_file():
        raise errors.TaskError(f"There is no Parquet file or folder '{path}'.")
    return [path]
