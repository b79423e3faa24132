"""What the tasks and the sources are, for the tables: sizes, and the geometry of task vectors."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.search import compare
from study import zoo as zoos

TASKS, GEOMETRY = "tasks.json", "geometry.json"


def write_tasks(task_list: Sequence[tasks.Task], fitting: Collection[str], folder: Path) -> None:
    """Write each task's number of classes and of images, and whether it fits the others."""
    content = {
        task.name: {
            "fits": task.name in fitting,
            "classes": len(task.classes),
            **{split: len(task.images(split)) for split in tasks.SPLITS},
        }
        for task in task_list
    }
    write(folder / TASKS, content)


def write_geometry(zoo: zoos.Zoo, seed: int, folder: Path) -> None:
    """Write what `compare` says of a seed's sources; kept if it is there.

    `relative_norm` is ‖τ‖ / ‖θ‖; `cosine`, `sign_conflict` and `overlap` are means over the other
    sources.
    """
    known = read(folder / GEOMETRY)
    if str(seed) in known:
        return
    found = compare.compare(zoo.base, list(zoo.sources.values()))
    count = len(zoo.sources)
    rows = {}
    for number, (task, row) in enumerate(zip(zoo.sources, found.rows(), strict=True)):
        others = [other for other in range(count) if other != number]
        cosine = float(found.total.cosines[number, others].mean()) if others else 0.0
        rows[task] = {
            "relative_norm": row["relative_norm"],
            "energy_kept": row["energy_kept"],
            "cosine": cosine,
            "sign_conflict": row.get("sign_conflict", 0.0),
            "overlap": row.get("overlap", 0.0),
        }
    write(folder / GEOMETRY, {**known, str(seed): rows})


def read(path: Path) -> dict[str, Any]:
    """The content of such a file; empty where there is none."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
