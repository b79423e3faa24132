"""The tasks: what six teams photographed, as folders of PNG files and a task file.

Each team has boards of its own colour; all of them work in poor light: weak contrast, noise, and
nobody holds the camera straight. The base has never seen contrast so weak, noise so strong, nor any
handwriting. It knows the words of all captions.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from mlflow_breadcrumbs.quickstart import materials
from mlflow_breadcrumbs.quickstart.settings import QuickstartSettings
from mlflow_breadcrumbs.support import progress

SPLITS = {"train": 0.6, "validation": 0.1, "test": 0.3}
"""Share of the images of each class."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One team's task."""

    name: str
    kind: str
    """Of character, as in `materials.CHARACTERS`, or `photo`."""
    classes: tuple[str, ...]
    board: tuple[float, float, float]
    """Colour of the ground."""
    handwritten: bool = False
    """Whether people wrote the characters; otherwise they are set in typefaces."""

    @property
    def light(self) -> materials.Light:
        """How the team's pictures are taken."""
        return materials.Light(
            paper=self.board,
            paper_varies=(0.8, 1.1),
            contrast=(0.18, 0.3),
            tilt=20,
            noise=0.16,
        )

    def pictures(
        self, settings: QuickstartSettings, rng: np.random.Generator
    ) -> tuple[list[materials.Picture], list[int]]:
        """Take the pictures; labels index `classes`."""
        each, size = settings.task_images, settings.image_size
        if self.handwritten:
            return materials.handwriting(size, self.light, rng)
        if self.kind == "photo":
            return materials.surfaces(each, size, self.light, rng)
        return materials.characters(self.kind, self.classes, each, size, self.light, rng)


ASSIGNMENTS = (
    Assignment("handwriting", "digit", materials.DIGITS, (0.75, 0.7, 0.6), handwritten=True),
    Assignment("letters", "letter", tuple("ABCDEFGHJK"), (0.5, 0.55, 0.8)),
    Assignment("greek", "greek", tuple(materials.CHARACTERS["greek"]), (0.8, 0.5, 0.5)),
    Assignment("cyrillic", "cyrillic", tuple(materials.CHARACTERS["cyrillic"]), (0.7, 0.5, 0.75)),
    Assignment("arrows", "arrow", tuple(materials.CHARACTERS["arrow"]), (0.45, 0.75, 0.5)),
    Assignment("surfaces", "photo", tuple(materials.SURFACES), (1.0, 1.0, 1.0)),
)


def write(
    folder: Path,
    settings: QuickstartSettings,
    assignments: Sequence[Assignment] = ASSIGNMENTS,
    show: progress.Progress = progress.silent,
) -> Path:
    """Write `FOLDER/TASK/SPLIT/CLASS/NUMBER.png` and `FOLDER/tasks.yaml`; gives the task file."""
    with show("photograph the tasks", total=len(assignments), unit="tasks") as advance:
        for number, assignment in enumerate(assignments):
            rng = np.random.default_rng([settings.seed, number])
            pictures, labels = assignment.pictures(settings, rng)
            order = rng.permutation(len(pictures))
            for position, index in enumerate(order):
                place = folder / assignment.name / _split(position / len(order))
                place /= assignment.classes[labels[index]]
                place.mkdir(parents=True, exist_ok=True)
                pixels = np.round(pictures[index] * 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{position:04}.png")
            advance(1)
    listed = [
        {
            "name": assignment.name,
            "classes": list(assignment.classes),
            "templates": [f"{assignment.kind} {{}}"],
            "images": {"folder": assignment.name},
        }
        for assignment in assignments
    ]
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": listed}, sort_keys=False, allow_unicode=True))
    return file


def _split(share: float) -> str:
    """The split of the image that so large a share of all images comes before."""
    passed = 0.0
    for name, part in SPLITS.items():
        passed += part
        if share < passed:
            return name
    return name
