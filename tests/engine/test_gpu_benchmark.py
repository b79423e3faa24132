"""The GPU benchmark, as far as it goes without a GPU."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import gpu_device
import pytest
import torch
import zoos

from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_tables(bench):
    copy = bench.rates("copy", 2 * 10**9, (0.001, 0.002, 0.004))
    fused = bench.rates("fused", 10**9, (0.002, 0.001, 0.004), copy.median)
    merge = bench.Figure("merge", "s", (0.5, 0.4, 2.0), floor=0.2)
    assert bench.table([copy, fused, merge]) == (
        "| | median | spread | of what the hardware allows |\n|---|---|---|---|\n"
        "| copy | 1000 GB/s | 500–2000 | – |\n"
        "| fused | 500 GB/s | 250–1000 | 50% |\n"
        "| merge | 0.5 s | 0.4–2 | 40% |\n"
    )
    found = bench.Contest("tensor", {"cpu": (3.0, 2.0, 4.0), "cuda": (1.5,)}, 9.0, "same bits")
    assert bench.contests([found]) == (
        "| recipe | CPU backend | GPU backend | ratio | GPU, first merge | weights |\n"
        "|---|---|---|---|---|---|\n"
        "| tensor | 3 s | 1.5 s | 2 | 9 s | same bits |\n"
    )


def test_a_contest_compares_what_both_backends_wrote(bench, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(40, 30, generator=generator)}
    opened = zoos.opened([base, {"w": base["w"] * 1.01}], tmp_path)
    monkeypatch.setattr(bench.choosing, "choose", lambda device: backend[device])
    backend = {"cpu": reference.Reference(), "cuda": gpu_backend.Gpu(gpu_device.DEVICE)}
    found = bench.contest("ours", bench.RECIPE, opened[:2], 1, tmp_path)
    assert found.agreement == "same bits"
    assert bench._difference(tmp_path, opened[0]) == 0
    other = dataclasses.replace(bench.RECIPE, alpha=0.5)

    class Other:
        name = "other"

        def run(self, job, *rest):
            return reference.Reference().run(dataclasses.replace(job, recipe=other), *rest)

    backend["cuda"] = Other()
    with pytest.raises(SystemExit, match="ours: the backends' weights differ"):
        bench.contest("ours", bench.RECIPE, opened[:2], 1, tmp_path)
    assert bench._difference(tmp_path, opened[0]) == pytest.approx(2 / 3, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_it_says_so(bench, tmp_path):
    output = tmp_path / "results" / "gpu.md"
    with pytest.raises(SystemExit, match=r"measures a GPU, and torch .* finds none; run it on a"):
        bench.main(["--output", str(output)])
    assert not output.parent.exists()
