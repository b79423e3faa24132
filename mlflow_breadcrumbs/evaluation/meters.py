"""Accuracies of many weights on many tasks: measured once, and taken from the cache after that."""

import contextlib
import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlflow_breadcrumbs.evaluation import caches, scoring
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads
from mlflow_breadcrumbs.support import defaults, executors, progress

_logger = logging.getLogger(__name__)


Pair = tuple[task_heads.Head, image_sets.ImageSet]
"""A head, and what it is measured on."""


@dataclasses.dataclass(frozen=True)
class Meter:
    """How to measure: the settings that all accuracies of a comparison must share."""

    config: architecture.ModelConfig
    """The architecture of all the weights."""
    device: str = "cpu"
    """What `devices.choose_device` gave."""
    batch_size: int = defaults.BATCH_SIZE
    """Images at a time."""
    cache: caches.Cache | None = None
    """Where accuracies are kept; `None` measures each anew."""
    show: progress.Progress = progress.silent
    """Is told about the images."""
    executor: executors.Executor = executors.LOCAL
    """Measures; the cache is read and written here alone."""

    def accuracies(
        self,
        load: Callable[[], torch.nn.Module],
        pairs: Sequence[Pair],
        *,
        weights_digest: str | None = None,
    ) -> tuple[scoring.Accuracy, ...]:
        """Measure one set of weights with each head on its images.

        Args:
            load: gives the model with these weights; called once, or never if all is known.
            pairs: heads and what they are measured on.
            weights_digest: of the weights, checked against their bytes; without it nothing is
                kept or taken from the cache.

        Raises:
            TaskError: classes that don't fit, no images, or an unreadable one.
            DeviceError: not even one image fits into the device's memory.
        """
        for head, image_set in pairs:
            scoring.check_classes(head, image_set)
        keys = [self._key(weights_digest, head, image_set) for head, image_set in pairs]
        found = [self.cache.get(key) if self.cache and key else None for key in keys]
        missing = [number for number, known in enumerate(found) if known is None]
        for number, (_, image_set) in enumerate(pairs):
            if number not in missing:
                _logger.info("the accuracy on %s is in the cache", image_set.name)
        for position, measured in self._measured(load, [pairs[number] for number in missing]):
            number = missing[position]
            found[number] = measured
            if self.cache and (key := keys[number]):
                self.cache.put(key, measured)
        return tuple(
            # The same images may have had another name.
            dataclasses.replace(known, task=head.task, image_set=image_set.name)
            for known, (head, image_set) in zip(found, pairs, strict=True)
            if known is not None
        )

    def _measured(
        self, load: Callable[[], torch.nn.Module], pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, scoring.Accuracy]]:
        """What is not in the cache, as it comes, with its position."""
        if not pairs:
            return
        amounts = [float(len(image_set)) for _, image_set in pairs]
        # Work here tells of itself, task by task.
        show = progress.silent if self.executor is executors.LOCAL else self.show
        with show("evaluate", total=sum(amounts), unit="images") as advance:
            work = MeterWork(self, load)
            yield from self.executor.run(work, pairs, advance=advance, amounts=amounts)

    def _key(
        self, weights_digest: str | None, head: task_heads.Head, image_set: image_sets.ImageSet
    ) -> dict[str, object] | None:
        if self.cache is None or weights_digest is None:
            return None
        return caches.key(
            weights_digest,
            self.config,
            head,
            image_set,
            device=self.device,
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True)
class MeterWork:
    """One set of weights, which is measured on several tasks; a piece is a `Pair`.

    To a worker elsewhere the weights go as arrays in memory, so that it needs none of our files but
    the images.
    """

    meter: Meter
    load: Callable[[], torch.nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave behind what only this process needs."""
        meter = dataclasses.replace(
            self.meter, cache=None, show=progress.silent, executor=executors.LOCAL
        )
        state = self.load().state_dict()
        return _elsewhere, (meter, {name: tensor.cpu().numpy() for name, tensor in state.items()})

    @contextlib.contextmanager
    def begin(self) -> Iterator[Callable[[Pair, progress.Advance], scoring.Accuracy]]:
        """What measures a head on its images."""
        meter, model = self.meter, self.load()
        preprocess = architecture.preprocess(meter.config)
        yield lambda pair, _: scoring.accuracy(
            model,
            *pair,
            preprocess,
            batch_size=meter.batch_size,
            device=meter.device,
            show=meter.show,
        )


def _elsewhere(meter: Meter, arrays: Mapping[str, np.ndarray[Any, Any]]) -> MeterWork:
    return MeterWork(meter, functools.partial(_built, meter.config, arrays))


def _built(
    config: architecture.ModelConfig, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> torch.nn.Module:
    """The model with these weights, which are copied."""
    model = architecture.build(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model
