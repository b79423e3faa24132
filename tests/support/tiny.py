"""Tiny real things that several tests share: a CLIP of two blocks, and images of plain colours."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import torch
from PIL import Image

from mlflow_breadcrumbs.models import architecture, image_sets

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
MODEL = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
IMAGE_ONLY = {"embed_dim": 12, "vision_cfg": VISION}

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def config_file(folder: Path, content: dict = MODEL, name: str = "tiny.json") -> str:
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def config(folder: Path, content: dict = MODEL) -> architecture.ModelConfig:
    return architecture.load_config(config_file(folder, content))


def model(config: architecture.ModelConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return architecture.build(config)


def pixels(colour: str, count: int, seed: int = 0) -> np.ndarray:
    """Noisy pictures of one colour, uint8 [count, 16, 16, 3]."""
    noise = np.random.default_rng(seed).integers(-20, 55, (count, 16, 16, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


def image_set(count: int = 8, name: str = "colours/test", seed: int = 0) -> image_sets.ImageSet:
    """`count` images of every colour."""
    pictures = np.concatenate([pixels(colour, count, seed + i) for i, colour in enumerate(COLOURS)])
    labels = np.repeat(np.arange(len(COLOURS)), count)
    return image_sets.from_arrays(name, tuple(COLOURS), pictures, labels)


def image_tree(root: Path, count: int = 10) -> Path:
    """A class-per-folder tree, `root/<colour>/<i>.png`."""
    for index, colour in enumerate(COLOURS):
        (root / colour).mkdir(parents=True)
        for number, picture in enumerate(pixels(colour, count, index)):
            Image.fromarray(picture).save(root / colour / f"{number}.png")
    return root


def task_file(folder: Path, *, count: int = 10, name: str = "colours", extra: str = "") -> str:
    """A task file with one task on a tree of images beside it."""
    image_tree(folder / "images", count)
    path = folder / "tasks.yaml"
    path.write_text(
        f"tasks:\n  - name: {name}\n    classes: [red, green, blue]\n"
        f"    images: {{folder: images}}\n{extra}"
    )
    return str(path)


def new_store(folder: Path, empty_database: Path) -> Path:
    """Make a real MLflow store in SQLite, its artifacts beside it."""
    shutil.copy(empty_database, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    return folder


def use_store(folder: Path) -> None:
    """Make MLflow's fluent calls go there, the registry's too, which `conftest.use` sets."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("tests")
