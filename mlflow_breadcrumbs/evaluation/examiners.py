"""Who measures models: the one seam between what is compared and how it is measured.

`scorecard` asks an examiner of the base, of each source and of the merged model, and nobody else.
`ImageExaminer` counts how many images open_clip models with heads get right; `grading` has the one
that asks the user's own evaluator.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.evaluation import meters, scores
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads


@dataclasses.dataclass(frozen=True)
class Examined:
    """One model that is measured."""

    label: str
    """What it is called."""
    weights: Path
    """Its checkpoint."""
    weights_digest: str | None = None
    """Where its bytes were, or will be, held against it; without it nothing is cached."""
    config: architecture.ModelConfig | None = None
    """Its own, where it preprocesses images otherwise than the base."""
    folder: Path | None = None
    """With all files of its MLflow model, where it lies in one."""
    uri: str | None = None
    """In MLflow, where it is there."""
    own: Mapping[str, Callable[[], contextlib.AbstractContextManager[Path]]] = dataclasses.field(
        default_factory=dict
    )
    """By task, what lays the model out with the head that it has for this task; removed at the
    end."""

    @contextlib.contextmanager
    def place(self, task: str | None) -> Iterator[Path]:
        """The folder in which the model is measured on a task."""
        if task is None or task not in self.own:
            yield self.folder or self.weights.parent
            return
        with self.own[task]() as folder:
            yield folder


class Examiner(Protocol):
    """Measures one model after another on the same tasks, with the same settings."""

    def examine(self, subject: Examined, tasks: Sequence[str]) -> Mapping[str, scores.Score]:
        """The score on each of these tasks.

        Raises:
            BreadcrumbsError: one of its kinds.
        """


class ImageExaminer:
    """Counts the images that open_clip models get right with the heads of their tasks.

    Args:
        meter: how to measure; with the base's configuration.
        owned: the head of each task.
        sets: the images of each task.
    """

    def __init__(
        self,
        meter: meters.Meter,
        owned: Mapping[str, task_heads.Head],
        sets: Mapping[str, image_sets.ImageSet],
    ) -> None:
        self._meter, self._owned, self._sets = meter, owned, sets
        # One model takes all weights.
        self._build = functools.cache(lambda: architecture.build(meter.config))

    def examine(self, subject: Examined, tasks: Sequence[str]) -> Mapping[str, scores.Score]:
        """The accuracy on each of these tasks; see `Meter.accuracies`."""

        def load() -> torch.nn.Module:
            flavor.load_weights(self._build(), subject.weights)
            return self._build()

        pairs = [(self._owned[name], self._sets[name]) for name in tasks]
        own = subject.config
        meter = self._meter if own is None else dataclasses.replace(self._meter, config=own)
        found = meter.accuracies(load, pairs, weights_digest=subject.weights_digest)
        return dict(zip(tasks, found, strict=True))
