"""Frozen classification heads: what turns an image's features into one of a task's classes.

logits [images, classes] = features [images, embed_dim, length 1] @ weight.T

A head comes from the text tower (`zero_shot_head`), from a linear probe on training images
(`probe_head`), or from a file (`read_head_file`). A version carries its heads as
`tasks/<task>.json` and `tasks/<task>.safetensors`.
"""

import dataclasses
import json
import logging
import stat
import typing
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import safetensors
import safetensors.torch
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, features, image_sets, tasks
from mlflow_breadcrumbs.support import canonical, defaults, json_documents, progress

HEADS_FOLDER = "tasks"

HEAD_BYTES = 4 << 20
"""Of a head's description at most; 21,841 class names are 0.5 MB."""

Kind = Literal["zero-shot", "probe", "file"]

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A task's classes and the linear map to their logits."""

    task: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    """What a zero-shot head was made with."""
    kind: Kind
    weight: torch.Tensor
    """float32 [classes, embed_dim]; the logit scale is folded in."""

    def __post_init__(self) -> None:
        tasks.check_name(self.task)
        if self.weight.dtype != torch.float32 or self.weight.ndim != 2:
            raise errors.TaskError(
                f"The head of task '{self.task}' is {self.weight.dtype} of shape "
                f"{tuple(self.weight.shape)}; it must be float32 [classes, embed_dim]."
            )
        if len(self.weight) != len(self.classes):
            raise errors.TaskError(
                f"The head of task '{self.task}' has {len(self.weight)} rows for "
                f"{len(self.classes)} classes."
            )
        if not bool(self.weight.isfinite().all()):
            raise errors.TaskError(f"The head of task '{self.task}' has a NaN or infinity in it.")

    @property
    def embed_dim(self) -> int:
        """Length of the features that the head takes."""
        return int(self.weight.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 over the classes and the weight, `sha256:…`."""
        weight = self.weight.contiguous().numpy().tobytes()
        return canonical.digest({"classes": list(self.classes), "weight": canonical.sha256(weight)})

    def probabilities(self, encoded: torch.Tensor) -> torch.Tensor:
        """Softmax of the logits, [images, classes], of features [images, embed_dim]."""
        return (encoded @ self.weight.to(encoded.device).T).softmax(dim=-1)


def zero_shot_head(
    model: torch.nn.Module, tokenizer: architecture.Tokenizer, task: tasks.Task
) -> Head:
    """Make a head from the text tower, as in CLIP (Radford et al. 2021, section 3.1.4).

    Every class name goes into every template; the normalized text features are averaged over the
    templates, normalized again, and multiplied by exp(logit_scale).

    Args:
        model: An open_clip model with a text tower; left in the mode it was in.
        tokenizer: The model's.
        task: Class names and templates.
    """
    text_model = cast(Any, model)
    device = text_model.logit_scale.device
    rows = []
    with features.inference(model):
        for name in task.classes:
            texts = [template.replace("{}", name) for template in task.templates]
            encoded = text_model.encode_text(tokenizer(texts).to(device)).float()
            mean = torch.nn.functional.normalize(encoded, dim=-1).mean(dim=0)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        weight = torch.stack(rows) * text_model.logit_scale.exp().float()
    return Head(task.name, task.classes, task.templates, "zero-shot", weight.cpu().clone())


def probe_head(
    model: torch.nn.Module,
    preprocess: architecture.Preprocess,
    task: tasks.Task,
    *,
    inverse_regularization: float = 10.0,
    batch_size: int = defaults.BATCH_SIZE,
    device: str = "cpu",
    show: progress.Progress = progress.silent,
) -> Head:
    """Fit a head on the task's training images: a linear probe, for models without a text tower.

    Multinomial logistic regression without bias on the normalized features (scikit-learn, L-BFGS).

    Args:
        model: An open_clip model; it is moved to the device.
        preprocess: The model's transform for inference.
        task: With a train split that has images of every class.
        inverse_regularization: scikit-learn's `C`, positive; smaller means smaller weights.
        batch_size: Images at a time.
        device: Where the image tower runs.
        show: Told about each batch.

    Raises:
        TaskError: A class has no training images.
    """
    from sklearn import exceptions, linear_model

    train = task.images("train")
    _check_every_class(task, train)
    seen = features.extract(
        model, train, preprocess, batch_size=batch_size, device=device, show=show
    )
    regression = linear_model.LogisticRegression(
        C=inverse_regularization, fit_intercept=False, max_iter=1000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        regression.fit(seen.values.double().numpy(), seen.labels.numpy())
    if int(max(regression.n_iter_)) >= regression.max_iter:
        _logger.warning(
            "The linear probe of task '%s' stopped after %d steps, before it had converged.",
            task.name,
            regression.max_iter,
        )
    weight = torch.from_numpy(regression.coef_).float()
    if len(weight) == 1:  # for two classes scikit-learn keeps one row, the logit of the second
        weight = torch.cat([-weight / 2, weight / 2])
    return Head(task.name, task.classes, task.templates, "probe", weight)


def read_head_file(path: str | Path, task: tasks.Task, *, embed_dim: int | None = None) -> Head:
    """Read a head from a safetensors file.

    Args:
        path: Its tensor `weight` [classes, embed_dim] has one row per class of the task, in the
            task's order, with the logit scale folded in. Where a JSON file of the same name lies
            beside it with `classes`, they must be the task's.
        task: The task that it is for.
        embed_dim: The model's, to check the shape.

    Raises:
        TaskError: The file is not such a head.
    """
    path = Path(path)
    weight = _read_weight(path)
    beside = path.with_suffix(".json")
    if beside.is_file():
        classes = _texts(beside, _read_json(beside), "classes")
        if classes != task.classes:
            raise errors.TaskError(
                f"The head '{path}' has the classes {', '.join(classes)}, but task '{task.name}' "
                f"has {', '.join(task.classes)}. They must be the same, in the same order."
            )
    if embed_dim is not None and weight.ndim == 2 and weight.shape[1] != embed_dim:
        raise errors.TaskError(
            f"The head '{path}' takes features of length {weight.shape[1]}, but the model gives "
            f"{embed_dim}."
        )
    return Head(task.name, task.classes, task.templates, "file", weight.float())


def write(folder: str | Path, heads: Iterable[Head]) -> None:
    """Write heads as `FOLDER/tasks/<task>.json` and `FOLDER/tasks/<task>.safetensors`."""
    for head in heads:
        target = Path(folder) / HEADS_FOLDER
        target.mkdir(parents=True, exist_ok=True)
        content = {
            "task": head.task,
            "kind": head.kind,
            "classes": head.classes,
            "templates": head.templates,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (target / f"{head.task}.json").write_text(text, encoding="utf-8")
        safetensors.torch.save_file(
            {"weight": head.weight.contiguous()}, target / f"{head.task}.safetensors"
        )


def read(folder: str | Path) -> dict[str, Head]:
    """Read the heads that `write` wrote, by task, sorted; none where there is no such folder.

    Raises:
        TaskError: A file is damaged or missing.
    """
    heads = {}
    for path in sorted((Path(folder) / HEADS_FOLDER).glob("*.json")):
        content = _read_json(path)
        if content.get("task") != path.stem:
            raise errors.TaskError(
                f"'{path}' doesn't describe a head: its 'task' must be {path.stem!r}, as the file."
            )
        if content.get("kind") not in typing.get_args(Kind):
            raise errors.TaskError(
                f"'{path}' doesn't describe a head: 'kind' must be one of "
                f"{', '.join(typing.get_args(Kind))}."
            )
        classes, templates = (_texts(path, content, key) for key in ("classes", "templates"))
        weight = _read_weight(path.with_suffix(".safetensors"))
        heads[path.stem] = Head(path.stem, classes, templates, content["kind"], weight)
    return heads


def _texts(path: Path, content: dict[str, Any], key: str) -> tuple[str, ...]:
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise errors.TaskError(f"'{path}' doesn't describe a head: {key!r} must be texts.")
    return tuple(found)


def select(heads: Sequence[Head] | dict[str, Head], task: str | None, *, whose: str) -> Head:
    """Give the head of a task; without a name, the only one.

    Raises:
        TaskError: There is none of that name, or a name is needed.
    """
    by_task = heads if isinstance(heads, dict) else {head.task: head for head in heads}
    known = ", ".join(by_task) or "none"
    if task is None:
        if len(by_task) == 1:
            return next(iter(by_task.values()))
        raise errors.TaskError(
            f"{whose} has {len(by_task)} tasks ({known}): say which one in the column 'task'."
        )
    if task not in by_task:
        raise errors.TaskError(f"{whose} has no task '{task}'; it has {known}.")
    return by_task[task]


def _check_every_class(task: tasks.Task, train: image_sets.ImageSet) -> None:
    present = {example.label for example in train.examples}
    absent = [name for label, name in enumerate(task.classes) if label not in present]
    if absent:
        raise errors.TaskError(
            f"A probe for task '{task.name}' can't be fitted: no training images of "
            f"{', '.join(absent)}. Add some, or raise 'limit'."
        )


def _read_json(path: Path) -> dict[str, Any]:
    content = json_documents.read(path, f"'{path}'", errors.TaskError, most=HEAD_BYTES)
    if not isinstance(content, dict):
        raise errors.TaskError(f"'{path}' is not a JSON object.")
    return content


def _read_weight(path: Path) -> torch.Tensor:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.TaskError(f"The head '{path}' is not a file.")
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise errors.TaskError(f"The head '{path}' is not a safetensors file: {error}.") from error
    if set(tensors) != {"weight"}:
        raise errors.TaskError(
            f"The head '{path}' must have one tensor, 'weight' [classes, embed_dim]; it has "
            f"{', '.join(sorted(tensors)) or 'none'}."
        )
    return tensors["weight"]
