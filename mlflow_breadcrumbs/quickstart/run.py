"""The quickstart, top to bottom: a zoo is made, registered, merged through `mlflow run`, shown."""

import json
import shlex
from pathlib import Path

from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.quickstart import conclusion, contest, demo_tasks, pretrain, staging
from mlflow_breadcrumbs.quickstart.settings import QuickstartSettings
from mlflow_breadcrumbs.registry import projects, records
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.sources import finetuning, importing, training
from mlflow_breadcrumbs.support import progress

BASE_MODEL = "demo-clip"
MERGED_MODEL = "demo-merged"


def quickstart(
    folder: str | Path,
    settings: QuickstartSettings | None = None,
    show: progress.Progress = progress.silent,
) -> staging.Shown:
    """Make a zoo of real images, merge it, and compare.

    Everything is written below `folder`, an MLflow store (SQLite) of its own too.

    Args:
        folder: New, empty, or left by an earlier quickstart, which is then replaced.
        settings: Of the zoo.
        show: Told about every stage.

    Raises:
        BreadcrumbsError: The folder holds something else, or a stage failed.
    """
    settings = settings or QuickstartSettings()
    project = staging.project()
    folder = Path(folder)
    staging.make_anew(folder)
    database = folder / "mlflow.db"
    # Absolute, since the merge runs in the project's folder.
    with staging.own_store(f"sqlite:///{database.resolve()}", folder):
        config_file = folder / "clip.json"
        config = pretrain.write_config(config_file, settings)
        pretrain.pretrain(config, folder / "clip.safetensors", settings, show)
        task_file = demo_tasks.write(folder / "tasks", settings, show=show)
        task_list = tasks.load_tasks(task_file)
        base = importing.import_checkpoint(
            str(folder / "clip.safetensors"),
            architecture_name=str(config_file),
            registered_model=BASE_MODEL,
            task_list=task_list,
            device="cpu",
            show=show,
        )
        sources = [_finetune(base, task, settings, show) for task in task_list]
        materials = workbench.Materials(
            base.uri, tuple(source.uri for source in sources), str(task_file), device="cpu"
        )
        with workbench.opened(materials, show) as bench:
            tried = contest.contest(bench, settings.alphas, show)
        parameters = {
            "base": base.uri,
            "sources": ",".join(source.uri for source in sources),
            "registered_model": MERGED_MODEL,
            "tasks": str(task_file.resolve()),
        }
        merged, entries = staging.merge(project, parameters, tried, show)
        ancestry = relatives.tree(merged.uri)
    said = f"The demo's own store is sqlite:///{database.resolve()}; {merged.uri} is in it."
    projects.point("quickstart", said)
    return staging.Shown(
        entries=entries,
        examples=sum(len(task.images("test")) for task in task_list),
        version=merged.uri,
        lineage=ancestry,
        tracking_uri=f"sqlite:///{database}",
        commands=_next_commands(f"sqlite:///{database}", task_list[0]),
        conclusion=conclusion.conclude(
            entries, f"models:/{MERGED_MODEL}@{staging.ALIAS}", f"--tasks {task_file}"
        ),
    )


def _finetune(
    base: records.RegisteredVersion,
    task: tasks.Task,
    settings: QuickstartSettings,
    show: progress.Progress,
) -> records.RegisteredVersion:
    return finetuning.finetune(
        base.uri,
        task,
        registered_model=f"demo-{task.name}",
        settings=training.TrainingSettings(
            steps=settings.finetune_steps,
            batch_size=settings.finetune_batch,
            learning_rate=settings.finetune_rate,
            seed=settings.seed,
        ),
        device="cpu",
        show=show,
    )


def _next_commands(store: str, task: tasks.Task) -> tuple[str, ...]:
    """What to try next, as it can be typed in the present folder."""
    image = Path(task.images("test").examples[0].origin).resolve()
    merged = f"models:/{MERGED_MODEL}@{staging.ALIAS}"
    record = json.dumps({"dataframe_records": [{"image": str(image), "task": task.name}]})
    return (
        *staging.activation(),
        f"export MLFLOW_TRACKING_URI={store}",
        "mlflow ui",
        f"mlflow-breadcrumbs lineage {merged}",
        f"mlflow-breadcrumbs report {merged} --output report.html",
        f"{serving.IMAGE_ROOT}={shlex.quote(str(image.parent))} mlflow models serve "
        f"--model-uri {merged} --env-manager local --port 5002",
        "curl http://127.0.0.1:5002/invocations --header 'Content-Type: application/json' "
        f"--data '{record}'",
    )
