"""What the GPU backend reaches on this machine's GPU: `make bench-gpu`.

In one run, for float32 and for bfloat16: the GPU's bits are held against the CPU backend's for
recipes of every kind, and whole merges of both are timed; then the copy bandwidth of the device and
of the way to it, the kernels' share of the former, and the whole merge against the latter. The
checkpoints are in the page cache. Every figure is the median of several repeats, with the smallest
and the largest beside it.

`--trace FILE` also writes a merge's timeline, which chrome://tracing and Perfetto show.
"""

import argparse
import dataclasses
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import zoo

from mlflow_breadcrumbs import __version__
from mlflow_breadcrumbs.engine import backends, checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.support import processes

RECIPE = recipe.MergeRecipe(density=0.14, gamma=0.01, alpha=0.3)
EXACT = {
    "breadcrumbs, unit `tensor`": RECIPE,
    "unit `row`": dataclasses.replace(RECIPE, unit="row"),
    "unit `model`": dataclasses.replace(RECIPE, unit="model"),
    "consensus `mass`, combine `mean`": dataclasses.replace(
        RECIPE, consensus="mass", combine="mean"
    ),
    "vectors `whole_mean`, depth 0.5": dataclasses.replace(
        RECIPE, vectors=recipe.WHOLE_MEAN, depth=0.5
    ),
    "task arithmetic": dataclasses.replace(RECIPE, density=1.0, gamma=0.0),
}
"""Recipes whose bits every backend agrees on."""
DECOMPOSING = (
    "tsv_m",
    "iso_c",
    "iso_cts",
    "breadcrumbs_calibrated",
    "actmat",
    "tact",
    "ace",
)
"""Presets that decompose matrices."""
COPIED = 1 << 30
"""Bytes of a copy whose bandwidth is measured."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured quantity."""

    what: str
    unit: str
    values: tuple[float, ...]
    """One per repeat."""
    floor: float | None = None
    """What the hardware allows, in the same unit."""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def row(self) -> str:
        """A line of the table."""
        share = "–" if self.floor is None else f"{self.share:.0%}"
        spread = f"{_digits(min(self.values))}–{_digits(max(self.values))}"
        return f"| {self.what} | {_digits(self.median)} {self.unit} | {spread} | {share} |"

    @property
    def share(self) -> float:
        """The part of the floor that is reached: a bandwidth's, or a time's inverse."""
        if self.floor is None:
            return float("nan")
        return self.floor / self.median if self.unit == "s" else self.median / self.floor


def _digits(value: float) -> str:
    """Three digits, or a whole number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| | median | spread | of what the hardware allows |", "|---|---|---|---|"]
    return "\n".join([*lines, *(figure.row() for figure in figures), ""])


def timed(work: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Seconds that the device takes for some work; the first two runs compile and don't count."""
    seconds = []
    for number in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if number > 1:
            seconds.append(start.elapsed_time(end) / 1e3)
    return tuple(seconds)


def rates(what: str, nbytes: int, seconds: Sequence[float], floor: float | None = None) -> Figure:
    """GB/s from the seconds that so many bytes took."""
    return Figure(what, "GB/s", tuple(nbytes / each / 1e9 for each in seconds), floor)


def copies(repeats: int) -> tuple[Figure, Figure]:
    """The bandwidth of copies on the device (bytes read and written), and from pinned memory."""
    here, there = (torch.empty(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
    pinned = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    on_device = timed(lambda: there.copy_(here), repeats)
    to_device = timed(lambda: there.copy_(pinned, non_blocking=True), repeats)
    return (
        rates("copy on the device", 2 * COPIED, on_device),
        rates("copy from pinned memory", COPIED, to_device),
    )


def kernels(job: backends.Job, copy: float, repeats: int) -> list[Figure]:
    """The fused pass and the passes that seek the cuts, on the piece with the most elements."""
    from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend, layout, selection

    device = torch.device("cuda")
    rounds = [found for found in layout.rounds(job, 1 << 30) if len(found.pieces) == 1]
    found = max(rounds, key=lambda found: found.pieces[0].elements)
    (piece,) = found.pieces
    raw = torch.empty(piece.nbytes, dtype=torch.uint8, pin_memory=True)
    for position, checkpoint in enumerate(job.inputs):
        for segment in piece.segments:
            size = checkpoint.info(segment.name).dtype.itemsize
            start = piece.offsets[position] + segment.position * size
            out = raw.numpy()[start : start + segment.elements * size]
            checkpoint.read(segment.name, segment.start * size, out)
    raw = raw.to(device)
    view = selection.View(piece, device)
    touches = gpu_backend.touch_counts(job, device)
    scales = gpu_backend.scales_of(piece.scale, job.weights, device)

    def seek() -> selection.Selection:
        search = selection.Selection(found, [view], device)
        for number in range(selection.PASSES):
            search.look(number, 0, raw)
            search.conclude(number)
        return search

    cuts = seek().cuts(0, raw)
    fused = timed(
        lambda: gpu_backend.merge_piece(view, raw, cuts, job.recipe, scales, touches), repeats
    )
    written = piece.elements * piece.dtype.itemsize
    # A source is read with the base beside it.
    passes = selection.PASSES * len(job.sources) * (piece.offsets[1] * 2)
    return [
        rates("fused pass: mask, sum, round", piece.nbytes + written, fused, copy),
        rates("seeking the cuts, 4 passes", passes, timed(seek, repeats), copy),
    ]


def whole(
    inputs: Sequence[checkpoints.Checkpoint], rate: float, repeats: int, folder: Path
) -> list[Figure]:
    """Whole merges, without and with the inputs' digests, against the copy to the device alone."""
    nbytes = sum(checkpoint.nbytes for checkpoint in inputs)
    figures = []
    for what, verify in (("whole merge", False), ("whole merge, all digests verified", True)):
        results = [
            merging.merge(
                inputs[0],
                inputs[1:],
                RECIPE,
                folder / "merged.safetensors",
                backend=choosing.choose("cuda"),
                verify=verify,
                overwrite=True,
            )
            for _ in range(repeats + 1)
        ]
        seconds = tuple(result.seconds for result in results[1:])
        figures.append(Figure(what, "s", seconds, nbytes / rate / 1e9))
    return figures


@dataclasses.dataclass(frozen=True)
class Contest:
    """One recipe on both backends."""

    what: str
    seconds: dict[str, tuple[float, ...]]
    """Per device, whole merges; the first, which compiles, doesn't count where there are more."""
    first: float
    """Seconds of the GPU's first merge, which compiles its kernels if the cache has none."""
    agreement: str
    """How the weights compare."""

    def row(self) -> str:
        """A line of the table."""
        cpu, gpu = (statistics.median(self.seconds[device]) for device in ("cpu", "cuda"))
        return (
            f"| {self.what} | {_digits(cpu)} s | {_digits(gpu)} s | {_digits(cpu / gpu)} "
            f"| {_digits(self.first)} s | {self.agreement} |"
        )


def contest(
    what: str,
    settings: recipe.MergeRecipe,
    inputs: Sequence[checkpoints.Checkpoint],
    repeats: int,
    folder: Path,
) -> Contest:
    """Time whole merges on the CPU and on the GPU, and compare the weights.

    Raises:
        SystemExit: the backends' bits differ where the recipe says that they agree.
    """
    results: dict[str, list[merging.MergeResult]] = {
        device: [
            merging.merge(
                inputs[0],
                inputs[1:],
                settings,
                folder / f"{device}.safetensors",
                backend=choosing.choose(device),
                overwrite=True,
            )
            for _ in range(repeats + 1)
        ]
        for device in ("cpu", "cuda")
    }
    digests = {device: found[0].weights_digest for device, found in results.items()}
    agreement = "same bits"
    if len(set(digests.values())) > 1:
        if settings.bit_exact:
            raise SystemExit(f"{what}: the backends' weights differ: {digests}")
        agreement = f"relative difference {_difference(folder, inputs[0]):.0e}"
    seconds = {
        device: tuple(result.seconds for result in found[1:] or found)
        for device, found in results.items()
    }
    found = Contest(what, seconds, results["cuda"][0].seconds, agreement)
    print(found.row(), file=sys.stderr, flush=True)
    return found


def _difference(folder: Path, base: checkpoints.Checkpoint) -> float:
    """‖GPU − CPU‖ / ‖CPU − base‖ over all weights that the two merges wrote."""
    cpu, cuda = (
        checkpoints.Checkpoint.open(folder / f"{name}.safetensors") for name in ("cpu", "cuda")
    )
    apart = moved = 0.0
    for name in base.names:
        ours, theirs = (found.tensor(name).double() for found in (cuda, cpu))
        apart += float((ours - theirs).square().sum())
        moved += float((theirs - base.tensor(name).double()).square().sum())
    return (apart / moved) ** 0.5


def contests(found: Sequence[Contest]) -> str:
    """The contests as Markdown."""
    lines = [
        "| recipe | CPU backend | GPU backend | ratio | GPU, first merge | weights |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(each.row() for each in found), ""])


def trace(inputs: Sequence[checkpoints.Checkpoint], folder: Path, file: Path) -> None:
    """Write the timeline of one merge."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        merging.merge(
            inputs[0],
            inputs[1:],
            RECIPE,
            folder / "traced.safetensors",
            backend=choosing.choose("cuda"),
        )
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(file))


def section(architecture: str, dtype: str, given: argparse.Namespace) -> str:
    """Measure one zoo, as Markdown."""
    paths = zoo.make(
        given.data / f"{architecture}-{dtype}", architecture, given.sources, getattr(torch, dtype)
    )
    inputs = [checkpoints.Checkpoint.open(path) for path in paths]
    with tempfile.TemporaryDirectory(dir=given.data) as name:
        folder = Path(name)
        found = [
            contest(what, settings, inputs, given.repeats, folder)
            for what, settings in EXACT.items()
            if not given.preset
        ]
        if dtype == "float32":
            found += [
                contest(
                    f"`{method}`",
                    recipe.MergeRecipe.from_method(method, sources=given.sources),
                    inputs,
                    0,
                    folder,
                )
                for method in given.preset or DECOMPOSING
            ]
        on_device, to_device = copies(given.repeats)
        job = merging.plan(inputs[0], inputs[1:], RECIPE)
        figures = [
            on_device,
            to_device,
            *kernels(job, on_device.median, given.repeats),
            *whole(inputs, to_device.median, given.repeats, folder),
        ]
        if given.trace:
            trace(inputs, folder, given.trace.with_stem(f"{given.trace.stem}-{dtype}"))
    volume = sum(checkpoint.nbytes for checkpoint in inputs) / 1e9
    title = f"{architecture}, {given.sources} sources, {dtype}: {volume:.2f} GB of inputs"
    return f"## {title}\n\n{contests(found)}\n{table(figures)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write them to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument(
        "--dtype",
        action="append",
        choices=["float32", "bfloat16", "float16"],
        help="may be given several times (default: float32 and bfloat16)",
    )
    parser.add_argument(
        "--preset",
        action="append",
        choices=DECOMPOSING,
        help="only these, of all recipes; may be given several times",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("benchmarks/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.md"))
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a merge's timeline")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(
            f"benchmarks/gpu.py measures a GPU, and torch {torch.__version__} finds none; "
            "run it on a machine where `nvidia-smi` lists one"
        )
    import triton

    text = "\n".join(
        [
            f"# The GPU backend on one {torch.cuda.get_device_name()}",
            "",
            f"{time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, "
            f"{processes.processors()} processors, mlflow_breadcrumbs {__version__}, torch "
            f"{torch.__version__}, triton {triton.__version__}, CUDA {torch.version.cuda}. The "
            f"inputs are in the page cache; medians of {given.repeats} repeats, of one where "
            "matrices are decomposed. `make bench-gpu` repeats it.",
            "",
        ]
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for dtype in given.dtype or ["float32", "bfloat16"]:
        text += "\n" + section(given.architecture, dtype, given)
        given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
