"""Where labelled images come from: folders, Parquet files, torchvision's data sets.

Each reader gives a `Pool` of `image_sets` per split: examples that load themselves when they are
looked at, and the names of their labels where the source has names.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import decoding, image_folders, image_sets, parquet_images
from mlflow_breadcrumbs.support import json_documents

TORCHVISION_SPLITS: Mapping[str, Mapping[str, str]] = {
    "Country211": {"validation": "valid"},
    "DTD": {"validation": "val"},
    "FGVCAircraft": {"validation": "val"},
    "Flowers102": {"validation": "val"},
    "ImageNet": {"test": "val"},
    "OxfordIIITPet": {"train": "trainval"},
    "PCAM": {"validation": "val"},
    "RenderedSST2": {"validation": "val"},
}
"""What a torchvision data set calls our splits, where not `train` and `test`."""


def read_folders(roots: Mapping[str, Path]) -> dict[str, image_sets.Pool]:
    """Read class-per-folder trees, `ROOT/<class>/…/*.png`, one per split.

    The labels number the folders' names, sorted, of all splits together, empty ones too. What else
    is in the trees is skipped as `image_folders` says, and counted in a log message.

    Raises:
        TaskError: A folder is missing, can't be read, or has no images.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    folders: set[str] = set()
    for split, root in roots.items():
        if not root.is_dir():
            raise errors.TaskError(f"There is no folder '{root}' for the images of '{split}'.")
        classes = image_folders.by_class(root)
        folders.update(classes)
        found[split] = [(name, path) for name, paths in classes.items() for path in paths]
        if not found[split]:
            raise errors.TaskError(
                f"There are no images in '{root}'. Expected a folder per class, as in "
                f"'{root}/cat/1.png'."
            )
    names = tuple(sorted(folders))
    return {
        split: image_sets.Pool(
            tuple(
                image_sets.Example(
                    functools.partial(decoding.read, path), names.index(name), str(path)
                )
                for name, path in items
            ),
            names,
        )
        for split, items in found.items()
    }


def read_parquet(
    paths: Sequence[Path], *, image_column: str = "image", label_column: str = "label"
) -> image_sets.Pool:
    """Read Parquet files in the Hugging Face image layout.

    Args:
        paths: The files of one split, in order.
        image_column: Column of structs `{bytes, path}`, or of the encoded bytes themselves. A
            struct without bytes names a file in the Parquet file's folder, relative to it.
        label_column: Column of integers; class names come from the Hugging Face metadata.

    The labels are read now, each image when it is looked at; see `parquet_images`.

    Raises:
        TaskError: A file is no such Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    examples: list[image_sets.Example] = []
    names: tuple[str, ...] | None = None
    spool = parquet_images.Spool()
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, parquet_images.row_groups(file)
                missing = sorted({image_column, label_column} - set(schema.names))
                labels = [] if missing else file.read([label_column]).column(0).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise errors.TaskError(f"'{path}' is not a Parquet file: {error}.") from error
        if missing:
            raise errors.TaskError(
                f"'{path}' has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(schema.names)}. Set image_column or label_column."
            )
        of_file = _parquet_names(schema, label_column, path)
        if examples and of_file != names:
            raise errors.TaskError(
                f"'{path}' names the classes {of_file}, but '{paths[0]}' names them {names}."
            )
        names = of_file
        pictures = parquet_images.ParquetImages(path, image_column, rows, spool)
        for row, label in enumerate(labels):
            origin = f"in row {row} of '{path}'"
            if not isinstance(label, int) or label < 0:
                raise errors.TaskError(
                    f"The label {label!r} {origin} is not a class number (0, 1, …)."
                )
            read = functools.partial(pictures.read, row, origin)
            examples.append(image_sets.Example(read, label, origin))
    if not examples:
        raise errors.TaskError(
            f"There are no images in {', '.join(map(str, paths))}: the files have no rows."
        )
    return image_sets.Pool(tuple(examples), names)


def read_torchvision(
    name: str, *, root: Path, download: bool = False, options: Mapping[str, Any] | None = None
) -> dict[str, image_sets.Pool]:
    """Read a data set of `torchvision.datasets` by name.

    Args:
        name: Class name there: `MNIST`, `SVHN`, `EuroSAT`, …
        root: The folder that holds it, as torchvision wants it.
        download: Let torchvision download what is missing.
        options: More arguments of that class.

    Returns:
        The pools of `train`, `test` and, where the data set has one, `validation`; or one pool
        `all` where it has no splits.
    """
    from torchvision import datasets

    factory = getattr(datasets, name, None)
    if not (inspect.isclass(factory) and name in datasets.__all__):
        raise errors.TaskError(
            f"torchvision has no data set '{name}'. Give a class name of torchvision.datasets, "
            "such as MNIST, SVHN or EuroSAT."
        )
    accepted = inspect.signature(factory.__init__).parameters
    options = dict(options or {})
    if "root" in accepted:
        options["root"] = str(root)
    if "download" in accepted:
        options["download"] = download
    arguments: dict[str, dict[str, Any]]
    if "train" in accepted:
        arguments = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in accepted and "split" not in options:
        words = {"train": "train", "test": "test", **TORCHVISION_SPLITS.get(name, {})}
        arguments = {split: {"split": word} for split, word in words.items()}
    else:
        arguments = {"all": {}}
    pools = {}
    for split, argument in arguments.items():
        try:
            dataset = factory(**options, **argument)
        except Exception as error:  # each data set has errors of its own
            raise errors.TaskError(
                f"torchvision's {name} can't be read from '{root}' ({split}): "
                f"{' '.join(str(error).split())} Set 'download: true' to fetch it."
            ) from error
        pools[split] = _torchvision_pool(dataset, f"torchvision {name} {split}")
    return pools


def _torchvision_pool(dataset: Any, origin: str) -> image_sets.Pool:
    labels = next(
        (
            getattr(dataset, attribute)
            for attribute in ("targets", "labels", "_labels")
            if hasattr(dataset, attribute)
        ),
        None,
    )
    if labels is None:  # a data set that only tells its labels with the images
        labels = [dataset[index][1] for index in range(len(dataset))]

    names = getattr(dataset, "classes", None)
    return image_sets.Pool(
        tuple(
            image_sets.Example(
                functools.partial(_torchvision_image, dataset, index, origin),
                int(label),
                f"{origin}[{index}]",
            )
            for index, label in enumerate(labels)
        ),
        tuple(map(str, names)) if names else None,
    )


def _torchvision_image(dataset: Any, index: int, origin: str) -> Image.Image:
    image = dataset[index][0]
    if not isinstance(image, Image.Image):
        raise errors.TaskError(f"{origin}[{index}] is {type(image).__name__}, not an image.")
    return image


def _parquet_names(schema: Any, label_column: str, path: Path) -> tuple[str, ...] | None:
    """The classes' names in the metadata that Hugging Face's data sets have."""
    found: Any = (schema.metadata or {}).get(b"huggingface")
    if found is None:
        return None
    found = json_documents.parse(found, f"The metadata of '{path}'", errors.TaskError)
    for key in ("info", "features", label_column, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
