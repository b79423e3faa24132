"""The GPU benchmark, as far as it goes without a GPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

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


def test_the_table(bench):
    copy = bench.rates("copy", 2 * 10**9, (0.001, 0.002, 0.004))
    fused = bench.rates("fused", 10**9, (0.002, 0.001, 0.004), copy.median)
    merge = bench.Figure("merge", "s", (0.5, 0.4, 2.0), floor=0.2)
    assert bench.table("Title", [copy, fused, merge], ["a device", "a version"]) == (
        "# Title\n\n"
        "| | median | spread | of what the hardware allows |\n|---|---|---|---|\n"
        "| copy | 1000 GB/s | 500–2000 | – |\n"
        "| fused | 500 GB/s | 250–1000 | 50% |\n"
        "| merge | 0.5 s | 0.4–2 | 40% |\n\n"
        "- a device\n- a version\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_it_says_so(bench, tmp_path):
    output = tmp_path / "results" / "gpu.md"
    with pytest.raises(SystemExit, match=r"measures a GPU, and torch .* finds none; run it on a"):
        bench.main(["--output", str(output)])
    assert not output.parent.exists()
