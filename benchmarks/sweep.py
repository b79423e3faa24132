"""What a sweep costs beside bare evaluations: `python benchmarks/sweep.py`, after `make demo`.

Two zoos: the quickstart's (13.7 MB, where an evaluation takes a tenth of a second), and ViT-S-32 at
full size with random weights, on the quickstart's images. Three ways to try 60 recipes:

- bare evaluations: a model in memory is filled with a merged checkpoint and run over images that
  are decoded already, and nothing else;
- the command `evaluate`, as often, on a version that is registered already: what one does without
  a sweep, the merges not counted;
- the sweep: opens and checks the versions, decodes, finds masks, merges, evaluates, logs a run per
  recipe, measures base, sources, robustness and test images, and draws.

Seconds are given by the clock and in processor time, which other programs disturb less; models run
in one thread, since a thread that waits for another one counts as busy.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import engine
import mlflow
import torch
import yaml
import zoo

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.search import grids, sweep, workbench
from mlflow_breadcrumbs.sources import importing

DEMO = Path("demo")
NOTE = """Where an evaluation takes a fraction of a second, what a sweep does besides weighs most: a
run in MLflow per recipe, decoding, pictures, and the measurements of base, sources, robustness and
test images. With a larger model or more images that share falls."""
TASKS = ("handwriting", "letters", "greek", "cyrillic", "arrows")


def seconds_of(work: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """By the clock, and of processor time in this process, for one of several calls."""
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - clock) / times, (time.process_time() - processor) / times


def make_recipes() -> tuple[recipe.MergeRecipe, ...]:
    """The default grid, 60 recipes."""
    axes = {field: grids.parse(field, values) for field, values in grids.DEFAULT.items()}
    return grids.recipes(grids.Grid(axes).points(), lambda point: recipe.MergeRecipe(**point))


def demo() -> workbench.Materials:
    """The versions that `make demo` registered."""
    mlflow.set_tracking_uri(f"sqlite:///{DEMO}/mlflow.db")
    sources = tuple(f"models:/demo-{name}/1" for name in TASKS)
    return workbench.Materials("models:/demo-clip/1", sources, str(DEMO / "tasks/tasks.yaml"))


def full_size(folder: Path, data: Path, architecture: str, limit: int) -> workbench.Materials:
    """Random weights of an architecture in a registry of their own, on images of the demo."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("imports")
    listed = yaml.safe_load((DEMO / "tasks/tasks.yaml").read_text())["tasks"]
    for task in listed:
        task["limit"] = limit
        task["images"]["folder"] = str((DEMO / "tasks" / task["images"]["folder"]).resolve())
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": [t for t in listed if t["name"] in TASKS]}))
    uris = []
    for path, task in zip(
        zoo.make(data / architecture, architecture, 5), (None, *TASKS), strict=True
    ):
        version = importing.import_checkpoint(
            str(path),
            architecture_name=architecture,
            registered_model=f"sweep-{task or 'base'}",
            task=task,
            task_list=tasks.load_tasks(str(file)) if task else (),
            head="probe" if task else "auto",
        )
        uris.append(version.uri)
    return workbench.Materials(uris[0], tuple(uris[1:]), str(file))


def compare(materials: workbench.Materials, title: str, evaluations: int) -> list[str]:
    """The table of one zoo."""
    recipes = make_recipes()
    mlflow.set_experiment(f"benchmark {time.time():.0f}")
    with workbench.opened(materials) as opened:
        images = sum(map(len, opened.images("validation").values()))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "merged.safetensors"
            flavor.write_weights(opened.merge(recipes[0]).tensors, weights)
            size = weights.stat().st_size
            bench = opened.bench("validation")
            bench.accuracies(weights)  # warm
            bare = seconds_of(lambda: bench.accuracies(weights), evaluations)
    command = seconds_of(
        lambda: evaluating.evaluate_version(
            materials.base, materials.tasks, only=TASKS, split="validation"
        ),
        2,
    )
    result: list[sweep.SweepResult] = []
    whole = seconds_of(lambda: result.append(sweep.sweep(sweep.SweepRequest(materials, recipes))))
    assert result[0].measured_now == len(recipes)
    rows = {
        f"{len(recipes)} bare evaluations (of {evaluations})": [len(recipes) * t for t in bare],
        f"{len(recipes)} times `evaluate` (of 2)": [len(recipes) * t for t in command],
        "the sweep": list(whole),
    }
    lines = [
        f"## {title}",
        "",
        f"{len(recipes)} recipes over {len(TASKS)} sources of {size / 1e6:.1f} MB, {images} "
        "validation images, robustness included.",
        "",
        "| | clock | processor time | the sweep / this, clock | processor time |",
        "|---|---|---|---|---|",
    ]
    for name, (clock, processor) in rows.items():
        lines.append(
            f"| {name} | {clock:.1f} s | {processor:.1f} s | {whole[0] / clock:.2f} "
            f"| {whole[1] / processor:.2f} |"
        )
    return [*lines, ""]


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=engine.HERE / "data")
    parser.add_argument("--architecture", default="ViT-S-32", help="of the second zoo")
    parser.add_argument("--limit", type=int, default=50, help="images per split of its tasks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# A sweep beside bare evaluations", ""]
    lines += ["`python benchmarks/sweep.py`, after `make demo`: "]
    lines[-1] += engine.machine(argparse.Namespace(mergekit=None))
    lines += ["", *compare(demo(), "The quickstart's zoo", 60)]
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        materials = full_size(Path(folder), given.data, given.architecture, given.limit)
        title = f"{given.architecture} at full size, random weights"
        lines += compare(materials, title, 5)
    lines += [NOTE, ""]
    (engine.RESULTS / "sweep.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
