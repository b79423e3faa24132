"""Fine-tuning of the image tower with the head frozen; plain torch, no MLflow.

As in the paper's experiments (and Ilharco et al. 2023, *Editing models with task arithmetic*):
AdamW, a cosine schedule with warm-up, gradient clipping, cross-entropy on the head's logits. The
text tower is never touched, so a merge leaves it as the base has it.

Every epoch draws its order and its crops from (seed, epoch, image) alone. So a training that was
stopped goes on at the last whole epoch and ends with the weights it would have had, and the number
of worker processes changes nothing.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils import data

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.evaluation import scoring
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads
from mlflow_breadcrumbs.sources import low_rank
from mlflow_breadcrumbs.support import canonical, devices, progress

RESUME_FILE = "training.pt"
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to fine-tune; the defaults are the paper's."""

    epochs: int = 10
    """Passes over the training images, at least 1; ignored where `steps` is given."""
    steps: int | None = None
    """Optimizer steps, at least 1; the last epoch may be cut short."""
    batch_size: int = 128
    """Images per step, at least 1."""
    learning_rate: float = 1e-5
    """After the warm-up, above 0 and at most 1."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, 0 or more; None is a tenth of all steps, at most 500."""
    weight_decay: float = 0.1
    """AdamW's, 0 to 1."""
    clip: float = 1.0
    """Largest norm of the gradient, positive."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, 0 to below 1."""
    precision: str = "auto"
    """Of the forward pass: `float32`, `bfloat16`, or `auto`, which is bfloat16 on a GPU and float32
    on a CPU. The weights are float32 in any case. CPUs that know bfloat16 are about 1.7 times as
    fast with it."""
    seed: int = 0
    """Of the order of the images and of their crops."""
    rank: int = 0
    """Of what is learned of each matrix, see `low_rank`; 0 trains all weights."""

    def __post_init__(self) -> None:
        for name, valid, needed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate <= 1, "above 0 and at most 1"),
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", 0 <= self.weight_decay <= 1, "0 to 1"),
            ("clip", 0 < self.clip < math.inf, "positive and finite"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 to below 1"),
            ("rank", self.rank >= 0, "0 or more"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not valid:
                raise errors.RecipeError(f"{name} is {getattr(self, name)}; it must be {needed}.")

    def fields(self) -> dict[str, Any]:
        """All fields by name; the rank only where there is one, as before there were ranks."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "rank" or value
        }

    def schedule(self, images: int) -> tuple[int, int]:
        """Give the steps and epochs that a number of training images makes."""
        per_epoch = math.ceil(images / self.batch_size)
        steps = self.steps if self.steps is not None else self.epochs * per_epoch
        return steps, math.ceil(steps / per_epoch)

    def autocasts(self, kind: str) -> bool:
        """Tell whether the forward pass runs in bfloat16 on that kind of device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and kind == "cuda")

    def rate(self, step: int, steps: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        warmup = min(500, steps // 10) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimizer steps since the beginning."""
    train_loss: float
    """Mean over the epoch's images."""
    learning_rate: float
    """Of the last step."""
    validation_accuracy: float | None
    """Fraction, 0…1; None without validation images."""


def train(
    model: nn.Module,
    config: architecture.ModelConfig,
    head: task_heads.Head,
    train_set: image_sets.ImageSet,
    settings: TrainingSettings,
    *,
    validation_set: image_sets.ImageSet | None = None,
    device: str = "cpu",
    folder: str | Path | None = None,
    workers: int | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    show: progress.Progress = progress.silent,
) -> tuple[Epoch, ...]:
    """Fine-tune the image tower of a model, in place.

    On a GPU the forward pass runs in bfloat16 (autocast) and the weights stay in float32, see
    `Settings.precision`. The statistics of batch normalization stay the base's: their counter of
    batches is an integer, and integers can't be merged.

    Args:
        model: The base, float32; it is moved to the device and ends in evaluation mode.
        config: The model's configuration, for its preprocessing.
        head: The task's, frozen.
        train_set: Images to learn from.
        settings: How.
        validation_set: Images to measure after each epoch.
        device: What `devices.choose_device` gave.
        folder: Where to keep `training.pt` after each epoch. The same call finds it there, goes on
            after that epoch, and ends with the same weights. Delete it when the result is safe.
        workers: Processes that load images; None is none on the CPU and up to 8 for a GPU.
        on_epoch: Called after each epoch, those before a resumption included.
        show: Told about each step, in images.

    Returns:
        The epochs.

    Raises:
        TaskError: The head's classes are not the images'.
        RecipeError: The loss became NaN or infinite.
        CheckpointError: The folder holds another training, or a damaged file.
        DeviceError: A batch doesn't fit into the device's memory.
    """
    for image_set in (train_set, validation_set):
        if image_set is not None:
            scoring.check_classes(head, image_set)
    steps, epochs = settings.schedule(len(train_set))
    visual = cast(nn.Module, model.to(device).visual)
    saved = _Saved.at(folder, model, head, train_set, settings)
    # Of the task too: matrices that begin alike end up in one subspace, where merges interfere.
    drawn = _generator(settings.seed, head.task)
    with low_rank.adapted(visual, settings.rank, drawn) as parameters:
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        history = saved.load(visual, optimizer) if saved else []
        if _workers(workers, device):
            _ = (
                train_set.digest
            )  # what is read from Parquet lies ready before there are more processes
        for past in history:
            _report(on_epoch, past)
        with show(f"fine-tune {head.task}", total=epochs * len(train_set), unit="images") as tick:
            tick(len(history) * len(train_set))
            for epoch in range(len(history), epochs):
                loss, step = _epoch(
                    model,
                    config,
                    head,
                    train_set,
                    settings,
                    optimizer,
                    epoch,
                    device,
                    workers,
                    tick,
                )
                measured = None
                if validation_set is not None:
                    preprocess = architecture.preprocess(config)
                    measured = scoring.accuracy(
                        model, head, validation_set, preprocess, device=device
                    ).value
                rate = settings.rate(step - 1, steps)
                history.append(Epoch(epoch + 1, step, loss, rate, measured))
                if saved:
                    saved.save(visual, optimizer, history)
                _report(on_epoch, history[-1])
    model.eval()
    return tuple(history)


def _epoch(
    model: nn.Module,
    config: architecture.ModelConfig,
    head: task_heads.Head,
    train_set: image_sets.ImageSet,
    settings: TrainingSettings,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    device: str,
    workers: int | None,
    tick: progress.Advance,
) -> tuple[float, int]:
    """Run one epoch; gives its mean loss and the number of steps since the beginning."""
    steps, _ = settings.schedule(len(train_set))
    order = torch.randperm(len(train_set), generator=_generator(settings.seed, epoch)).tolist()
    batches = [
        order[start : start + settings.batch_size]
        for start in range(0, len(order), settings.batch_size)
    ]
    step = epoch * len(batches)
    batches = batches[: steps - step]
    loader: data.DataLoader[Any] = data.DataLoader(
        _Crops(train_set, architecture.preprocess(config, train=True), settings.seed, epoch),
        batch_sampler=batches,
        num_workers=_workers(workers, device),
        pin_memory=device.startswith("cuda"),
    )
    _train_mode(model)
    weight = head.weight.to(device)
    total = 0.0
    with _seeded(settings.seed, epoch, device):
        for pixels, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step, steps)
            try:
                loss = _step(model, weight, pixels, labels, settings, optimizer, device)
            except RuntimeError as error:
                if not devices.is_out_of_memory(error):
                    raise
                raise errors.DeviceError(
                    f"Out of memory on '{device}' with {len(labels)} images per step. "
                    "Use a smaller --batch-size."
                ) from error
            if not math.isfinite(loss):
                raise errors.RecipeError(
                    f"The loss became {loss} in step {step + 1}. Use a smaller learning rate than "
                    f"{settings.learning_rate}, or a longer warm-up."
                )
            total += loss * len(labels)
            step += 1
            tick(len(labels))
    return total / sum(map(len, batches)), step


def _step(
    model: nn.Module,
    weight: torch.Tensor,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    settings: TrainingSettings,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> float:
    """Take one optimizer step; `weight` is the head's, [classes, embed_dim]."""
    optimizer.zero_grad(set_to_none=True)
    kind = device.partition(":")[0]
    with torch.autocast(kind, torch.bfloat16, enabled=settings.autocasts(kind)):
        encoded = cast(Any, model).encode_image(pixels.to(device, non_blocking=True))
    logits = nn.functional.normalize(encoded.float(), dim=-1) @ weight.T
    loss = nn.functional.cross_entropy(
        logits, labels.to(device), label_smoothing=settings.label_smoothing
    )
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimizer.step()
    return loss.item()


class _Crops(data.Dataset[tuple[torch.Tensor, int]]):
    """Training images with their random crops, each drawn from (seed, epoch, image)."""

    def __init__(
        self,
        images: image_sets.ImageSet,
        preprocess: architecture.Preprocess,
        seed: int,
        epoch: int,
    ) -> None:
        self._images = images
        self._preprocess = preprocess
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self._images[index]
        state = torch.get_rng_state()
        torch.set_rng_state(_generator(self._seed, self._epoch, index).get_state())
        try:
            return self._preprocess(image), label
        finally:
            torch.set_rng_state(state)


@dataclasses.dataclass(frozen=True)
class _Saved:
    """The file that a stopped training goes on from."""

    path: Path
    key: str
    """Digest of all that decides the result."""

    @classmethod
    def at(
        cls,
        folder: str | Path | None,
        model: nn.Module,
        head: task_heads.Head,
        train_set: image_sets.ImageSet,
        settings: TrainingSettings,
    ) -> "_Saved | None":
        if folder is None:
            return None
        key = canonical.digest(
            {
                "settings": {k: repr(v) for k, v in settings.fields().items()},
                "model": checkpoints.state_dict_digest(model.state_dict()),
                "head": checkpoints.state_dict_digest({"weight": head.weight}),
                # One by one: the order of the images decides which crops they get.
                "images": [f"{e.digest().hex()} {e.label}" for e in train_set.examples],
            }
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        return cls(Path(folder) / RESUME_FILE, key)

    def load(self, visual: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        """Put the saved state back; gives the epochs that are done."""
        if not self.path.exists():
            return []
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            key = state["key"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise errors.CheckpointError(
                f"'{self.path}' is damaged and can't be resumed. Delete it to start again."
            ) from error
        if key != self.key:
            raise errors.CheckpointError(
                f"'{self.path}' belongs to a training of another model, other images or other "
                "settings. Give another folder, or delete it."
            )
        visual.load_state_dict(state["visual"])
        optimizer.load_state_dict(state["optimizer"])
        return [Epoch(**past) for past in state["history"]]

    def save(
        self, visual: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]
    ) -> None:
        """Write the state under a temporary name, sync, rename."""
        state = {
            "key": self.key,
            "visual": visual.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": [dataclasses.asdict(past) for past in history],
        }
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _train_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _generator(*parts: int | str) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: str) -> Iterator[None]:
    """Seed torch's global generators, for dropout, and put them back at the end."""
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(_generator(seed, epoch).initial_seed())
        yield


def _workers(workers: int | None, device: str) -> int:
    if workers is not None:
        return workers
    return min(8, (os.cpu_count() or 2) - 1) if device.startswith("cuda") else 0


def _report(on_epoch: Callable[[Epoch], None] | None, epoch: Epoch) -> None:
    if on_epoch is not None:
        on_epoch(epoch)
