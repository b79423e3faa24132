"""Accuracies of many weights on many tasks: measured once, and taken from the cache after that."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import torch

from mlflow_breadcrumbs.evaluation import caches, scoring
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads
from mlflow_breadcrumbs.support import defaults, progress

_logger = logging.getLogger(__name__)


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

    def accuracies(
        self,
        load: Callable[[], torch.nn.Module],
        pairs: Sequence[tuple[task_heads.Head, image_sets.ImageSet]],
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
        model: torch.nn.Module | None = None
        preprocess = architecture.preprocess(self.config)
        found = []
        for head, image_set in pairs:
            key = self._key(weights_digest, head, image_set)
            known = self.cache.get(key) if self.cache and key else None
            if known is None:
                model = model or load()
                known = scoring.accuracy(
                    model,
                    head,
                    image_set,
                    preprocess,
                    batch_size=self.batch_size,
                    device=self.device,
                    show=self.show,
                )
                if self.cache and key:
                    self.cache.put(key, known)
            else:
                _logger.info("the accuracy on %s is in the cache", image_set.name)
            # The same images may have had another name.
            found.append(dataclasses.replace(known, task=head.task, image_set=image_set.name))
        return tuple(found)

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
