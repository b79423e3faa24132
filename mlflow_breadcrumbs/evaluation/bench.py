"""Measures one set of weights after another on the same images, which are decoded once.

```python
bench = bench.Bench(config, {"cars": task.images("validation")}, {"cars": head})
bench.accuracies(path)["cars"].value      # the same number as scoring.accuracy gives
bench.accuracies(tensors, limit=50)       # on 50 images of each task
```
"""

import concurrent.futures
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.evaluation import scoring
from mlflow_breadcrumbs.models import architecture, features, image_sets, task_heads
from mlflow_breadcrumbs.support import defaults, processes, progress

MEMORY = 4 << 30
"""Bytes of decoded images that are kept; what is beyond is decoded again each time."""


class Bench:
    """One model, filled with weights again and again.

    Args:
        config: the architecture.
        sets: the images, by task.
        owned: the head of each task.
        device: what `devices.choose_device` gave.
        batch_size: images at a time.
        memory: bytes of decoded images to keep.
        show: is told about the images that are decoded.

    Raises:
        TaskError: a head's classes are not the images', or an image can't be read.
    """

    def __init__(
        self,
        config: architecture.ModelConfig,
        sets: Mapping[str, image_sets.ImageSet],
        owned: Mapping[str, task_heads.Head],
        *,
        device: str = "cpu",
        batch_size: int = defaults.BATCH_SIZE,
        memory: int = MEMORY,
        show: progress.Progress = progress.silent,
    ) -> None:
        for task, images in sets.items():
            scoring.check_classes(owned[task], images)
        self._config, self._device = config, device
        self._model = self._built()
        self._heads, self._batch_size = owned, batch_size
        self._pictures: dict[str, _Pictures] = {}
        preprocess = architecture.preprocess(config)
        total = sum(len(images) for images in sets.values())
        with show("decode images", total=total, unit="images") as advance:
            for task, images in sets.items():
                pictures = _Pictures(images, config, preprocess, memory)
                memory -= pictures.nbytes
                self._pictures[task] = pictures
                advance(len(images))
        self._subsets: dict[tuple[str, int | None], image_sets.ImageSet] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the images as they are decoded, without the model."""
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the model anew."""
        self.__dict__.update(state)
        self._model = self._built()

    def _built(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):  # the random weights are about to be replaced
            return architecture.build(self._config).to(self._device)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order that they were given."""
        return tuple(self._pictures)

    def images(self, task: str, limit: int | None = None) -> image_sets.ImageSet:
        """The images of a task that `limit` leaves."""
        key = (task, limit)
        if key not in self._subsets:
            self._subsets[key] = self._pictures[task].images.subset(limit)
        return self._subsets[key]

    def accuracies(
        self,
        weights: Path | Mapping[str, torch.Tensor],
        tasks: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> dict[str, scoring.Accuracy]:
        """The accuracy of weights on each task.

        Args:
            weights: a checkpoint file, or the tensors of the model.
            tasks: all when not given.
            limit: images per task at most, see `ImageSet.subset`.

        Raises:
            CheckpointError: the file is damaged, its tensors aren't the model's, or a feature is
                not finite.
            DeviceError: not even one image fits into the device's memory.
        """
        if isinstance(weights, Path):
            flavor.load_weights(self._model, weights)
        else:
            self._model.load_state_dict(weights)
        return {
            task: scoring.score(
                self._features(task, limit), self._heads[task], self.images(task, limit)
            )
            for task in (self.tasks if tasks is None else tasks)
        }

    def _features(self, task: str, limit: int | None) -> features.Features:
        started = time.perf_counter()
        pictures, images = self._pictures[task], self.images(task, limit)
        batch_size, values = self._batch_size, []
        with features.inference(self._model):
            for pixels in pictures.batches(limit, batch_size):
                encoded, batch_size = features.encode(self._model, pixels, batch_size, self._device)
                features.check_finite(encoded, images.name)
                values.append(encoded)
        self._batch_size = batch_size
        labels = torch.tensor([example.label for example in images.examples])
        seconds = time.perf_counter() - started
        return features.Features(torch.cat(values), labels, batch_size, seconds)


class _Pictures:
    """The images of one task, ready for the model; the first ones are kept decoded."""

    def __init__(
        self,
        images: image_sets.ImageSet,
        config: architecture.ModelConfig,
        preprocess: architecture.Preprocess,
        memory: int,
    ) -> None:
        self.images = images
        self._config, self._preprocess = config, preprocess
        first = self._decode([0])
        fitting = max(0, memory) // (first.element_size() * first[0].numel())
        kept = min(len(images), fitting)
        self._kept = torch.empty((kept, *first.shape[1:]))
        for start in range(0, kept, 256):
            rows = range(start, min(start + 256, kept))
            self._kept[rows.start : rows.stop] = self._decode(rows)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may share the memory of an array, and not of a tensor."""
        return {**self.__dict__, "_kept": self._kept.numpy(), "_preprocess": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the array for a tensor; nobody writes to it."""
        self.__dict__.update(state)
        self._preprocess = architecture.preprocess(self._config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._kept = torch.from_numpy(state["_kept"])

    @property
    def nbytes(self) -> int:
        """What the decoded images take."""
        return self._kept.element_size() * self._kept.numel()

    def batches(self, limit: int | None, batch_size: int) -> Iterator[torch.Tensor]:
        """The images that `limit` leaves, in order, as float32 [batch, 3, height, width]."""
        rows = self.images.positions(limit)
        for start in range(0, len(rows), batch_size):
            yield self._pixels(rows[start : start + batch_size])

    def _pixels(self, rows: Sequence[int]) -> torch.Tensor:
        inside = sum(row < len(self._kept) for row in rows)  # rows are sorted
        parts = []
        if isinstance(rows, range):
            parts.append(self._kept[rows.start : rows.start + inside])
        else:
            parts.append(self._kept[list(rows[:inside])])
        if inside < len(rows):
            parts.append(self._decode(rows[inside:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, rows: Sequence[int]) -> torch.Tensor:
        with concurrent.futures.ThreadPoolExecutor(min(8, processes.processors())) as pool:
            return torch.stack(
                list(pool.map(lambda row: self._preprocess(self.images[row][0]), rows))
            )
