"""Versions from outside: import, fine-tune, evaluate."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import (
    addresses,
    evaluator_choice,
    experiments,
    options,
    printing,
    spreading,
    task_choice,
)
from mlflow_breadcrumbs.support import scales

if TYPE_CHECKING:
    from mlflow_breadcrumbs.evaluation import evaluator_files


@click.command("import")
@click.argument("checkpoint")
@click.option(
    "--architecture",
    required=True,
    metavar="NAME|FILE",
    help="open_clip's name, as ViT-B-32, or a JSON configuration.",
)
@click.option("--registered-model", required=True, metavar="NAME", help="Where it goes.")
@click.option("--task", type=options.TEXT, help="What it was fine-tuned for.")
@task_choice.option("Task file: make the heads of its tasks.")
@click.option(
    "--head",
    default="auto",
    show_default=True,
    metavar="auto|zero-shot|probe|FILE",
    help="From the text tower, fitted on the training images, or read from a .safetensors file.",
)
@options.device_option
@experiments.experiment_option
@options.ledger_option
@options.json_option
def import_command(
    checkpoint: str,
    architecture: str,
    registered_model: str,
    task: str | None,
    tasks: str | None,
    head: str,
    device: str,
    as_json: bool,
) -> None:
    """Register an open_clip CHECKPOINT as a version.

    CHECKPOINT is a .safetensors file, a .pt of plain tensors, or a tag of open_clip's pretrained
    weights (as `openai`), which is downloaded.

    \b
    mlflow-breadcrumbs import vit_b_32.safetensors --architecture ViT-B-32 \\
        --registered-model clip --tasks tasks.yaml
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.models import assumptions
    from mlflow_breadcrumbs.registry import task_files
    from mlflow_breadcrumbs.sources import importing

    tasks = task_choice.chosen(tasks)
    version = importing.import_checkpoint(
        checkpoint,
        architecture_name=architecture,
        registered_model=registered_model,
        task=task,
        task_list=task_files.load(tasks) if tasks else (),
        task_file=tasks,
        head=head,
        device=device,
        show=terminal.show,
    )
    if importing.tag_of(checkpoint) is None and (taken := assumptions.of(architecture)):
        printing.remark(f"Note: {taken}")
    printing.print_version(version, as_json)


@click.command("finetune")
@click.option(
    "--base", required=True, type=addresses.VERSION, metavar="URI", help="Version to start from."
)
@task_choice.option("Task file with training images.  [default: the base's]")
@click.option("--task", required=True, help="Which task of the file.")
@click.option("--registered-model", required=True, metavar="NAME", help="Where the result goes.")
@click.option("--epochs", type=options.WHOLE, help="Passes over the images.  [default: 10]")
@click.option("--steps", type=options.WHOLE, help="Optimizer steps, instead of epochs.")
@click.option("--batch-size", type=options.WHOLE, help="Images per step.  [default: 128]")
@click.option("--learning-rate", type=options.NUMBER, help="Peak of the cosine.  [default: 1e-5]")
@click.option("--warmup-steps", type=options.COUNT, help="Steps of linear warm-up.")
@click.option("--weight-decay", type=options.NUMBER, help="AdamW's.  [default: 0.1]")
@click.option("--clip", type=options.NUMBER, help="Largest norm of the gradient.  [default: 1]")
@click.option("--label-smoothing", type=options.NUMBER, help="0 to below 1.  [default: 0]")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of the forward pass; auto is bfloat16 on a GPU.  [default: auto]",
)
@click.option(
    "--rank",
    type=options.COUNT,
    help="Learn changes of this rank only (LoRA); 0 trains all weights.  [default: 0]",
)
@click.option("--seed", type=options.COUNT, help="Of the order of the images.  [default: 0]")
@click.option(
    "--resume-folder",
    type=options.TEXT,
    metavar="DIR",
    help="Keep the state there after each epoch; the same command goes on from it.",
)
@options.device_option
@experiments.experiment_option
@options.ledger_option
@options.json_option
def finetune_command(
    base: str,
    tasks: str | None,
    task: str,
    registered_model: str,
    resume_folder: str | None,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fine-tune the image tower of a registered version on a task; the head stays frozen.

    \b
    mlflow-breadcrumbs finetune --base models:/clip/1 --tasks tasks.yaml --task cars \\
        --registered-model clip-cars
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.models.tasks import find
    from mlflow_breadcrumbs.registry import task_files
    from mlflow_breadcrumbs.sources import finetuning, training

    version = finetuning.finetune(
        base,
        find(task_files.load(task_choice.needed(tasks, base)), task),
        registered_model=registered_model,
        settings=training.TrainingSettings(
            **{name: value for name, value in settings.items() if value is not None}
        ),
        device=device,
        folder=resume_folder,
        show=terminal.show,
    )
    printing.print_version(version, as_json)


@click.command("evaluate")
@click.argument("uri", type=addresses.VERSION)
@task_choice.option("Task file with images.  [default: the version's, or its base's]")
@evaluator_choice.option
@click.option("--task", "only", multiple=True, metavar="NAME", help="Only this task; repeatable.")
@options.split_option
@options.batch_size_option
@options.device_option
@spreading.executor_options
@click.option("--threads", type=options.WHOLE, help="Of each of Ray's workers.  [default: 1]")
@experiments.experiment_option
@options.ledger_option
@options.cache_option
@options.json_option
def evaluate_command(
    uri: str,
    tasks: str | None,
    evaluator: str | None,
    only: tuple[str, ...],
    split: Any,
    batch_size: int,
    device: str,
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    threads: int | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Measure a version's accuracy on each task of a file, and log it to a run.

    Or any version by any metric: with your own evaluator.

    \b
    mlflow-breadcrumbs evaluate models:/clip-merged@candidate --tasks tasks.yaml

    \b
    mlflow-breadcrumbs evaluate models:/bert-merged/1 --evaluator evaluators.yaml
    """
    own = evaluator_choice.chosen(evaluator, tasks)
    names = [name for name in only if name]
    if own is not None:
        if executor_name == "ray":
            raise click.UsageError("an --evaluator measures in this process; leave --executor out")
        _evaluate_by(own, uri, names, split, as_json)
        return
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.evaluation import caches, evaluating

    with spreading.of_models(executor_name, workers, ray_address, threads, device) as executor:
        found = evaluating.evaluate_version(
            uri,
            task_choice.needed(tasks, uri),
            only=names,
            split=split,
            device=device,
            batch_size=batch_size,
            cache=None if no_cache else caches.default(),
            show=terminal.show,
            executor=executor,
        )
    if as_json:
        printing.print_json(found.to_dict())
        return
    terminal.print_table(
        printing.with_intervals(found.rows()),
        {
            "task": "task",
            "correct": "correct",
            "total": "images",
            "accuracy": "accuracy",
            "interval": "95% interval",
        },
    )


def _evaluate_by(
    evaluator: "evaluator_files.UserEvaluator",
    uri: str,
    names: Sequence[str],
    split: str,
    as_json: bool,
) -> None:
    """The same by the user's own evaluator."""
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.evaluation import graded_versions

    found = graded_versions.grade_version(
        uri, evaluator, only=names, split=split, show=terminal.show
    )
    if as_json:
        printing.print_json(found.to_dict())
        return
    rows = [
        {"metric": scales.ACCURACY.metric, **scales.shown(row), "task": row["task"]}
        for row in found.rows()
    ]
    terminal.print_table(
        printing.with_intervals(rows),
        {
            "task": "task",
            "metric": "metric",
            "total": "examples",
            "accuracy": "value",
            "interval": "95% interval",
        },
    )
    printing.echo(f"run {found.run_id}")
