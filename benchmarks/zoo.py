"""Random checkpoints of the benchmarks: a base and sources that are a small step away from it."""

import concurrent.futures
import multiprocessing
from pathlib import Path

import open_clip
import torch

from mlflow_breadcrumbs.engine import checkpoints, writing
from mlflow_breadcrumbs.support import processes


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """The tensors of an open_clip architecture; nothing is allocated."""
    with torch.device("meta"):
        model = open_clip.CLIP(**_config(architecture))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _config(architecture: str) -> dict[str, object]:
    config = dict(open_clip.get_model_config(architecture) or {})
    if not config:
        raise SystemExit(f"open_clip has no architecture {architecture!r}")
    config.pop("custom_text", None)
    return config


def make(
    folder: Path, architecture: str, sources: int, dtype: torch.dtype = torch.float32
) -> list[Path]:
    """Write base.safetensors and source00 … where they are missing; tensor by tensor.

    Weights are normal with deviation 0.02, those of the norms near 1; a source adds normal noise
    of deviation 0.0005, about what a fine-tuning with small steps does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    infos = {
        name: checkpoints.TensorInfo(dtype, shape) for name, shape in shapes(architecture).items()
    }
    paths = [folder / "base.safetensors"]
    paths += [folder / f"source{number:02}.safetensors" for number in range(sources)]
    missing = [(path, infos, number) for number, path in enumerate(paths) if not path.exists()]
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes.processors(), spawn) as pool:
            list(pool.map(_write, *zip(*missing, strict=True)))
    return paths


def _write(path: Path, infos: dict[str, checkpoints.TensorInfo], number: int) -> None:
    """Write one checkpoint; 0 is the base."""
    torch.set_num_threads(1)
    with writing.CheckpointWriter(path, infos) as writer:
        for position, name in enumerate(infos):
            writer.write(name, _tensor(position, name, infos, number))


def _tensor(
    position: int, name: str, infos: dict[str, checkpoints.TensorInfo], number: int
) -> torch.Tensor:
    dtype, shape = infos[name]
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(position)) * 0.02
    if len(shape) < 2:
        tensor += 1
    if number:
        generator = torch.Generator().manual_seed(1000 * number + position)
        tensor += torch.randn(shape, generator=generator) * 0.0005
    return tensor.to(dtype)
