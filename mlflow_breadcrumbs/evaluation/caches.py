"""Accuracies that were measured before: the base's and the sources' serve many merges.

An entry is a small JSON file, found by the digest of everything that its numbers depend on: the
weights, the architecture and its preprocessing, the head, the images, the batch size, the kind of
device, and the versions of the libraries that compute. What changes one of them changes the name,
so nothing is ever stale; the folder can be deleted at any time.
"""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import torch

from mlflow_breadcrumbs.evaluation import scoring
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads
from mlflow_breadcrumbs.support import canonical

VARIABLE = "BREADCRUMBS_CACHE"
"""Names the folder; without it, `mlflow_breadcrumbs` in the user's cache folder."""

FORMAT = 2
"""Raise it when the arithmetic of an accuracy, the decoding of images or the form of an entry
changes."""

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of accuracies."""

    folder: Path

    def get(self, key: dict[str, Any]) -> scoring.Accuracy | None:
        """The accuracy that was kept under a key; `None` if there is none that can be read."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            kept = entry["accuracy"]
            kept["classes"] = tuple(kept["classes"])
            kept["outcomes"] = tuple(tuple(outcome) for outcome in kept["outcomes"])
            found = scoring.Accuracy(**kept)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _logger.warning("cannot read %s (%s); measuring again", self._path(key), error)
            return None
        return found if entry["key"] == key else None

    def put(self, key: dict[str, Any], accuracy: scoring.Accuracy) -> None:
        """Keep an accuracy; where the folder can't be written to, it is not kept."""
        path = self._path(key)
        content = json.dumps({"key": key, "accuracy": dataclasses.asdict(accuracy)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, delete=False
            ) as file:
                file.write(content)
            os.replace(file.name, path)  # whole or not at all, whoever else is writing
        except OSError as error:
            _logger.warning("cannot keep an accuracy in %s: %s", self.folder, error)

    def _path(self, key: dict[str, Any]) -> Path:
        name = canonical.digest(key).removeprefix("sha256:")
        return self.folder / "accuracies" / name[:2] / f"{name}.json"


def default() -> Cache:
    """The cache of this user: `$BREADCRUMBS_CACHE`, or a folder in the user's cache folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Cache(Path(given))
    return Cache(platformdirs.user_cache_path("mlflow_breadcrumbs", appauthor=False))


def key(
    weights_digest: str,
    config: architecture.ModelConfig,
    head: task_heads.Head,
    image_set: image_sets.ImageSet,
    *,
    device: str,
    batch_size: int,
) -> dict[str, Any]:
    """Everything that an accuracy depends on.

    The batch size is part of it: the order of sums, and so a close decision, can depend on it.
    """
    return {
        "format": FORMAT,
        "weights": weights_digest,
        "architecture": canonical.sha256(config.to_json().encode()),
        "head": head.digest,
        "head_kind": head.kind,
        "images": image_set.digest,
        "batch_size": batch_size,
        "device": _device_kind(device),
        "libraries": _libraries(),
    }


def _device_kind(device: str) -> str:
    """What computes: the kind of GPU, or the instructions of the CPU that torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
