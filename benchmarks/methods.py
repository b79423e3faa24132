"""What the methods that decompose matrices cost: TSV-M and Iso-C beside breadcrumbs.

    python benchmarks/methods.py

Makes random checkpoints in `benchmarks/data` (5.5 GB), as `engine.py` does, and writes
`benchmarks/results/methods.md`: the time and the memory of whole merges, each in a process of its
own, and the time and the error of three ways to decompose one matrix, which is why `singular.py`
does it as it does. Random noise has full rank, so no matrix is cheaper than it could be.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import engine
import torch

from mlflow_breadcrumbs.engine.backends import singular, symmetric

CONTENDERS = (
    "ours",
    "iso_c",
    "breadcrumbs_calibrated",
    "tsv_m",
    "tsv_m, masked",
    "actmat",
    "tact",
)
SHAPES = ((768, 768), (3072, 768), (512, 2048))
COUNT = 96
"""Components that TSV-M keeps of a matrix of rank 768 where there are 8 sources."""


def spectrum(shape: tuple[int, int]) -> torch.Tensor:
    """A float32 matrix whose singular values fall as those of a fine-tuned layer's change."""
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left, right = (
        torch.linalg.qr(torch.randn(side, rank, generator=generator, dtype=torch.float64))[0]
        for side in shape
    )
    values = 1 / torch.arange(1, rank + 1, dtype=torch.float64)
    return ((left * values) @ right.T).float()


def whole(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The leading components by a whole decomposition, in the matrix's dtype."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :count] * values[:count]) @ right[:count]


def squares(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The leading components as `singular.leading` finds them."""
    left, values, right = singular.leading(matrix, count)
    return (left * values) @ right.T


WAYS: dict[str, tuple[Callable[[torch.Tensor, int], torch.Tensor], torch.dtype]] = {
    "SVD, float32": (whole, torch.float32),
    "SVD, float64": (whole, torch.float64),
    "eigenvectors of the squares, float64 (`singular.leading`)": (squares, torch.float64),
}


def decompositions(repeats: int) -> list[str]:
    """Every way on every shape, in one thread, in Markdown."""
    lines = ["| | " + " | ".join(f"{m} × {n}" for m, n in SHAPES) + " | relative error |"]
    lines.append("|---|" + "---|" * (len(SHAPES) + 1))
    with symmetric.one_thread():
        matrices = [spectrum(shape) for shape in SHAPES]
        exact = [whole(matrix.double(), COUNT) for matrix in matrices]
        for name, (way, dtype) in WAYS.items():
            seconds, errors = [], []
            for matrix, expected in zip(matrices, exact, strict=True):
                taken = []
                for _ in range(repeats):
                    started = time.process_time()
                    found = way(matrix.to(dtype), COUNT)
                    taken.append(time.process_time() - started)
                seconds.append(min(taken))
                errors.append(float((found.double() - expected).norm() / expected.norm()))
            cells = " | ".join(f"{value:.2f} s" for value in seconds)
            lines.append(f"| {name} | {cells} | {max(errors):.0e} |")
    return lines


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=engine.HERE / "data")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--mergekit", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--mergekit-repeats", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ways = decompositions(3)
    print("\n".join(ways), flush=True)
    found = engine.scenario(given.data, "ViT-B-32", 8, CONTENDERS, given.repeats, given)
    lines = [
        "# Methods that decompose matrices",
        "",
        engine.machine(given) + " `python benchmarks/methods.py` repeats it.",
        "",
        "## ViT-B-32 (151 M parameters), 8 sources of random noise, float32",
        "",
        "| | time | processor time | × breadcrumbs | peak anonymous memory | peak resident |",
        "|---|---|---|---|---|---|",
    ]
    plain = min(entry["processor"] for entry in found["rounds"]["ours"])
    for name, rounds in found["rounds"].items():
        best = min(rounds, key=lambda entry: entry["processor"])
        peaks = [max(entry[kind] for entry in rounds) for kind in ("anonymous", "resident")]
        lines.append(
            f"| {'breadcrumbs' if name == 'ours' else name} | {best['seconds']:.1f} s "
            f"| {best['processor']:.1f} s | {best['processor'] / plain:.1f} "
            f"| {peaks[0] / 1e9:.2f} GB | {peaks[1] / 1e9:.2f} GB |"
        )
    lines += ["", f"## One matrix, its leading {COUNT} components, one thread (processor time)", ""]
    lines += ways
    (engine.RESULTS / "methods.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
