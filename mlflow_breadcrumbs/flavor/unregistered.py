"""Merged weights laid out as the MLflow model that they will become, for those who look at one.

The files are copies: whatever is done to them, what is registered later is not touched.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mlflow.models.model import MLMODEL_FILE_NAME

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.flavor import foreign, own_heads
from mlflow_breadcrumbs.models import task_heads
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import copies


def lay_out(
    base: versions.OpenedVersion,
    weights: Path,
    heads: Iterable[task_heads.Head],
    folder: Path,
    own: own_heads.OwnHead | None = None,
) -> Path:
    """The folder of a model that loads as its base does.

    Args:
        base: opened with all of its files.
        weights: the merged checkpoint.
        heads: of an open_clip model's tasks.
        folder: that does not exist.
        own: the head that a source of another flavor keeps; then it loads as that source does.

    Returns:
        The folder.
    """
    if base.flavor == flavor.FLAVOR_NAME:
        config = flavor.load_config(base.folder)
        flavor.save_model(folder, config=config, weights=weights, heads=heads)
        return folder
    foreign.lay_out(base, weights, folder)
    if own is None:
        for name, file in foreign.arrange(base, weights).files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copies.copy(file, folder / name)
    else:
        place = folder / foreign.weights_file(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        own_heads.lay(own, weights, place, max_shard_size=foreign.shard_size(base))
    record = foreign.record_of(base)
    if own is not None:
        own_heads.declare(own, record)
    # What MLflow measures of this folder is not the base's.
    record.model_id = record.run_id = record.model_uuid = None
    record.save(str(folder / MLMODEL_FILE_NAME))
    return folder


def by_task(
    base: versions.OpenedVersion,
    weights: Path,
    heads: Mapping[str, own_heads.OwnHead],
    folder: Path,
) -> dict[str, Callable[[], contextlib.AbstractContextManager[Path]]]:
    """What lays a model out with the head of one task, by task; each is removed after its use.

    Args:
        base: opened with all of its files; or a merged version, with its own weights.
        weights: the checkpoint.
        heads: by task.
        folder: that does not exist.
    """

    @contextlib.contextmanager
    def laid_out(head: own_heads.OwnHead) -> Iterator[Path]:
        try:
            yield lay_out(base, weights, (), folder, head)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return {task: functools.partial(laid_out, head) for task, head in heads.items()}
