"""From a registered base and a task to a registered source; `training` does the training."""

from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelInput

from mlflow_breadcrumbs import flavor, ledger
from mlflow_breadcrumbs.evaluation import accuracy_records
from mlflow_breadcrumbs.flavor import loading
from mlflow_breadcrumbs.ledger import finishing
from mlflow_breadcrumbs.models import image_sets, tasks
from mlflow_breadcrumbs.registry import (
    pages,
    permissions,
    records,
    registering,
    runs,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.sources import training
from mlflow_breadcrumbs.support import canonical, devices, escaping, progress, wording


def finetune(
    base_uri: str,
    task: tasks.Task,
    *,
    registered_model: str,
    settings: training.TrainingSettings | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    show: progress.Progress = progress.silent,
) -> records.RegisteredVersion:
    """Fine-tune a registered version on a task, and register the result.

    The head is the base's for that task where it has one, else it is made from the text tower.
    The version's tags are `breadcrumbs.task`, `breadcrumbs.base` and `breadcrumbs.weights_digest`;
    the run shows the base as input, the result as output, the images, the settings, and per epoch
    `train_loss`, `learning_rate` and `validation_accuracy/<task>`.

    Args:
        base_uri: The base, as MLflow writes it: `models:/NAME/VERSION`, `models:/NAME@ALIAS`.
        task: With a train and a validation split.
        registered_model: Name to register the result under.
        settings: How to train.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        folder: Where to keep the state after each epoch. If the job is stopped, the same call goes
            on from there. The state is removed when the version is registered.
        show: Told about each step.

    Raises:
        RegistryError: The base can't be found or is of another flavor, or the name is not allowed.
        IntegrityError: The base's bytes are not those that were registered.
        TaskError: The images or the head are unusable.
    """
    settings = settings or training.TrainingSettings()
    versions.check_name(registered_model)
    ledger.check()
    permissions.check(registered_model)
    device = devices.choose_device(device)
    resolved = versions.resolve(base_uri)
    train_set, validation_set = task.images("train"), task.images("validation")
    asked = canonical.digest(
        {
            "base": [resolved.uri, resolved.recorded_digest],
            "images": [train_set.digest, validation_set.digest],
            "task": [task.name, list(task.classes), list(task.templates)],
            "settings": settings.fields(),
            "registeredModel": registered_model,
        }
    )
    if left := finishing.finished(registered_model, "finetune", asked):
        return left
    mark = {tag_keys.REQUEST_DIGEST: asked}
    with (
        versions.workspace() as space,
        runs.run(f"finetune {task.name}", "finetune", tags=mark) as run_id,
        ledger.recording("finetune", registered_model, run_id=run_id) as job,
    ):
        base = loading.open_base(resolved, space, device)
        head = loading.choose_head(base, task)
        _log_start(run_id, resolved, task, settings, train_set, validation_set)
        epochs = training.train(
            base.model,
            base.config,
            head,
            train_set,
            settings,
            validation_set=validation_set,
            device=device,
            folder=folder,
            on_epoch=lambda epoch: _log_epoch(task, epoch),
            show=show,
        )
        info = flavor.log_model(
            pages.logged_name(registered_model), config=base.config, model=base.model, heads=[head]
        )
        digest = info.flavors[flavor.FLAVOR_NAME]["weights_digest"]
        version = registering.register(
            registered_model,
            model_id=info.model_id,
            tags={
                tag_keys.TASK: task.name,
                tag_keys.BASE: resolved.uri,
                tag_keys.WEIGHTS_DIGEST: digest,
                tag_keys.KIND: "finetune",
            },
        )
        page = _page(version, resolved, task, epochs)
        pages.tell(page, run_id=run_id, uri=version.uri, model=MODEL)
        job.done(version, base=resolved.uri, task=task.name)
    if folder is not None:
        (Path(folder) / training.RESUME_FILE).unlink(missing_ok=True)
    return version


MODEL = (
    "Versions that `mlflow-breadcrumbs finetune` trained; each says on what, and from which base."
)
"""The description of a registered model that has none."""


def _page(
    version: records.RegisteredVersion,
    base: versions.ResolvedVersion,
    task: tasks.Task,
    epochs: Sequence[training.Epoch],
) -> pages.Page:
    """What MLflow's pages say of a fine-tuning."""
    rows = [
        [str(each.epoch), f"{each.train_loss:.4f}", f"{each.validation_accuracy:.3f}"]
        for each in epochs
        if each.validation_accuracy is not None
    ]
    following = ["merge", "--base", base.uri, "--source", version.uri, "--source", "…"]
    following += ["--registered-model", "merged", "--tasks", "tasks.yaml"]
    return pages.Page(
        f"Fine-tuned for the task {escaping.markdown(task.name)} "
        f"({wording.counted(len(task.classes), 'classes')}), its head frozen.",
        titles=("epoch", "training loss", "validation accuracy"),
        rows=rows[::-1],
        made_from=[("base", base.uri)],
        following=["mlflow-breadcrumbs", *following],
    )


def _log_start(
    run_id: str,
    resolved: versions.ResolvedVersion,
    task: tasks.Task,
    settings: training.TrainingSettings,
    train_set: image_sets.ImageSet,
    validation_set: image_sets.ImageSet,
) -> None:
    """Log the base, the images and the settings; `finetune.` keeps clear of `mlflow run`'s keys."""
    if resolved.model_id is not None:
        mlflow.MlflowClient().log_inputs(run_id, models=[LoggedModelInput(resolved.model_id)])
    parameters = {"base": resolved.uri, "task": task.name, **settings.fields()}
    mlflow.log_params({f"finetune.{name}": value for name, value in parameters.items()})
    accuracy_records.log_image_set(train_set, context="training")
    accuracy_records.log_image_set(validation_set, context="validation")


def _log_epoch(task: tasks.Task, epoch: training.Epoch) -> None:
    metrics = {"train_loss": epoch.train_loss, "learning_rate": epoch.learning_rate}
    if epoch.validation_accuracy is not None:
        metrics[f"validation_accuracy/{task.name}"] = epoch.validation_accuracy
    mlflow.log_metrics(metrics, step=epoch.epoch)
