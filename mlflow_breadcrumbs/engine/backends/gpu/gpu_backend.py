"""The GPU backend: pieces of all inputs pass through the device, and Triton's kernels merge them.

The modules: `layout` (how a merge is cut up), `inputs` (pieces on their way to the device),
`selection` (which elements are kept), `triton_kernels` (the compiled loops), `outputs` (merged
pieces on their way to the file). Reading, copies in both directions, kernels and writing go on at
the same time. Memory is bounded: pieces have a size of their own, whatever the number of sources.

With `TRITON_INTERPRET=1`, set before the process starts, all this runs on the CPU in Triton's
interpreter: very slow, but the same code, which is how it is tested where there is no GPU.
"""

import concurrent.futures
import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe, writing
from mlflow_breadcrumbs.engine.backends import Job, Outcome, arithmetic, reference
from mlflow_breadcrumbs.engine.backends.cpu import decomposing, kernels, reading
from mlflow_breadcrumbs.engine.backends.gpu import layout, triton_kernels
from mlflow_breadcrumbs.engine.backends.gpu.inputs import Loader
from mlflow_breadcrumbs.engine.backends.gpu.layout import Round
from mlflow_breadcrumbs.engine.backends.gpu.outputs import Merged, Results
from mlflow_breadcrumbs.engine.backends.gpu.selection import PASSES, Selection, View
from mlflow_breadcrumbs.support import devices, progress
from mlflow_breadcrumbs.support.processes import processors

_logger = logging.getLogger(__name__)

SHARE = 0.6
"""Of the device's free memory that may hold pieces of the inputs."""

INTERPRETED = 1 << 30
"""Bytes that may hold pieces where Triton is interpreted."""

SMALLEST = 1 << 20
"""Bytes of a piece below which the device is too small."""


class Gpu:
    """Merges with Triton's kernels on one device.

    Args:
        device: `cuda` or `cuda:N`; `cpu` in Triton's interpreter.
        piece: bytes of all inputs on the device at once, and of their copy in pinned memory.
        memory: bytes of the device that may hold pieces; most of what is free when not given.
    """

    name = "gpu"

    def __init__(
        self, device: str = "cuda", *, piece: int = layout.PIECE, memory: int | None = None
    ) -> None:
        self.device = torch.device(device)
        self._piece = piece
        self._memory = memory

    def run(self, job: Job, writer: writing.Writer, advance: progress.Advance) -> Outcome:
        """See `backends.Backend.run`.

        Raises:
            DeviceError: not even small pieces fit into the device's memory.
        """
        if not job.recipe.bit_exact:
            handed_over = decomposing.Decomposing(processors(), device=self.device)
            return handed_over.run(job, writer, advance)
        wide = any(job.base.info(name).dtype == torch.float64 for name in job.merged)
        if wide and job.recipe.unit == "model":
            # The order of all magnitudes is one of float64; the definition knows how.
            return reference.Reference().run(job, writer, advance)
        on_device = (
            torch.cuda.device(self.device)
            if self.device.type == "cuda"
            else contextlib.nullcontext()
        )
        with (
            on_device,
            arithmetic.first_fault(job),
            concurrent.futures.ThreadPoolExecutor(processors()) as pool,
        ):
            return self._run(job, writer, _Once(advance), pool)

    def _run(
        self,
        job: Job,
        writer: writing.Writer,
        advance: "_Once",
        pool: concurrent.futures.Executor,
    ) -> Outcome:
        """Merge with pieces as large as the device takes."""
        piece, memory = self._piece, self._memory or self._free()
        while True:
            advance.start()
            run = _GpuRun(job, writer, advance, self.device)
            try:
                return run.outcome(min(piece, memory // 3), memory, pool)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                piece, memory = min(piece, memory // 3) // 2, memory // 2
                if piece < SMALLEST:
                    raise errors.DeviceError(
                        f"the merge ran out of memory on {str(self.device)!r} with pieces of "
                        f"{2 * piece / 1e6:.1f} MB; free the device, or use --device cpu"
                    ) from error
            _logger.warning(
                "out of memory on %s: starting again with pieces of %.0f MB",
                self.device,
                piece / 1e6,
            )
            devices.free_cache(str(self.device))

    def _free(self) -> int:
        """Bytes that may hold pieces."""
        if self.device.type != "cuda":
            return INTERPRETED
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free * SHARE)


class _Once:
    """Tells the progress of a job that may start again: the bytes beyond those told before."""

    def __init__(self, advance: progress.Advance) -> None:
        self._advance = advance
        self._told = self._done = 0

    def start(self) -> None:
        """The job starts again from nothing."""
        self._done = 0

    def __call__(self, nbytes: float) -> None:
        """So many bytes more are done."""
        self._done += int(nbytes)
        if self._done > self._told:
            self._advance(self._done - self._told)
            self._told = self._done


class _GpuRun:
    """One merge under way."""

    def __init__(
        self,
        job: Job,
        writer: writing.Writer,
        advance: progress.Advance,
        device: torch.device,
    ) -> None:
        self._job = job
        self._writer = writer
        self._advance = advance
        self._device = device
        self._outcome = Outcome([], [0] * (len(job.sources) + 1), [], [{} for _ in job.inputs])
        self._scales: dict[float, torch.Tensor] = {}
        self._touches = touch_counts(job, device)

    def outcome(self, piece: int, memory: int, pool: concurrent.futures.Executor) -> Outcome:
        """Merge every tensor.

        Args:
            piece: bytes of all inputs at once.
            memory: bytes of the device that may hold pieces.
            pool: its workers read, write and hash.

        Raises:
            MergeError: that of the first tensor, by name, that can't be merged.
        """
        plan = layout.rounds(self._job, piece)
        order = [
            piece
            for found in plan
            for _ in range(PASSES + 1 if found.searched else 1)
            for piece in found.pieces
        ]
        elements = max((piece.elements for piece in order), default=0)
        with contextlib.ExitStack() as stack:
            loader = Loader(self._job, self._device, order, memory, pool)
            stack.callback(loader.close)
            pieces = sum(len(found.pieces) for found in plan)
            results = Results(self._job, self._writer, self._device, pieces, elements, pool)
            stack.callback(results.close)
            for found in plan:
                self._merge_round(found, loader, results)
            results.finish()
            for hexdigests, read in zip(self._outcome.hexdigests, loader.hexdigests(), strict=True):
                hexdigests |= read
        return self._complete(results)

    def _merge_round(self, found: Round, loader: Loader, results: Results) -> None:
        """Seek the cuts of a round's long units, then merge its pieces."""
        views = [View(piece, self._device) for piece in found.pieces]
        search = Selection(found, views, self._device) if found.searched else None
        if search:
            for number in range(PASSES):
                for position in range(len(views)):
                    with self._visit(loader, views[position]) as raw:
                        search.look(number, position, raw)
                search.conclude(number)
        for position, view in enumerate(views):
            with self._visit(loader, view) as raw:
                cuts = search.cuts(position, raw) if search else keep_all(view)
                scales = self._scales_of(view.piece.scale)
                merged = merge_piece(view, raw, cuts, self._job.recipe, scales, self._touches)
            results.take(merged)

    def _scales_of(self, scale: float) -> torch.Tensor:
        """A piece's scale, then the weights, on the device."""
        if scale not in self._scales:
            self._scales[scale] = scales_of(scale, self._job.weights, self._device)
        return self._scales[scale]

    @contextlib.contextmanager
    def _visit(self, loader: Loader, view: View) -> Iterator[torch.Tensor]:
        """The next piece's bytes on the device; what is read for the first time is told."""
        with loader.visit() as (raw, new):
            yield raw
        if new:
            self._advance(
                sum(
                    segment.elements * checkpoint.info(segment.name).dtype.itemsize
                    for segment in view.piece.segments
                    for checkpoint in self._job.inputs
                )
            )

    def _complete(self, results: Results) -> Outcome:
        """Tensor by tensor by name: merge those left to the reference, and check the others."""
        job, outcome = self._job, self._outcome
        touched = np.array(self._touches.tolist()[: len(job.sources) + 1])
        touched[0] = 0
        keep = reference.keep_unit(job.recipe)
        for name in job.merged:
            if layout.by_definition(job, name):
                statistics, counts, squares = reference.write_tensor(
                    job, name, keep, self._writer, outcome.hexdigests, self._advance
                )
                touched += counts
            else:
                tally, elements = results.tallies[name], job.base.info(name).numel
                if tally.infinite:
                    for label, checkpoint in zip(
                        ("the base", *job.labels), job.inputs, strict=True
                    ):
                        arithmetic.check_finite(checkpoint.tensor(name), label, name)
                if tally.bad is not None:
                    raise arithmetic.overflow(name, tally.bad, job.dtypes[name])
                statistics, squares = tally.statistics(name, elements), tally.base_energy
            outcome.statistics += statistics
            outcome.base_energies.append(squares)
        parameters = sum(job.base.info(name).numel for name in job.merged)
        touched[0] = parameters - touched[1:].sum()
        outcome.touched = [int(count) for count in touched]
        return outcome


def keep_all(view: View) -> torch.Tensor:
    """Cuts of a piece that leave nothing out, int32 [tiles, sources, 4]."""
    ends = [0, 0, int(kernels.MAGNITUDE), layout.TILE]
    cuts = torch.tensor(ends, dtype=torch.int32, device=view.table.device)
    return cuts.expand(len(view.table), view.sources, -1).contiguous()


def merge_piece(
    view: View,
    raw: torch.Tensor,
    cuts: torch.Tensor,
    settings: recipe.MergeRecipe,
    scales: torch.Tensor,
    touches: torch.Tensor,
) -> Merged:
    """Launch the fused pass over a piece.

    Args:
        view: of the piece.
        raw: uint8 [bytes] the piece on the device.
        cuts: int32 [tiles, sources, 4] of the long tiles; see `triton_kernels.merge_tiles`.
        settings: the recipe.
        scales: float32 [1 + sources], see `scales_of`.
        touches: int64 [a power of two, more than sources] increased by the elements that so many
            sources touched.
    """
    piece, device = view.piece, raw.device
    # Kernels round to bfloat16 themselves, and store the bits.
    dtype = torch.uint16 if piece.dtype == torch.bfloat16 else piece.dtype
    shape = (len(view.table), view.sources)
    merged = Merged(
        piece=piece,
        content=torch.empty(piece.elements, dtype=dtype, device=device),
        seen=torch.empty((*shape, 4), dtype=torch.int32, device=device),
        energies=torch.empty((*shape, 2), dtype=torch.float64, device=device),
        base_energy=torch.empty(shape[0], dtype=torch.float64, device=device),
        bad=torch.empty(shape[0], dtype=torch.int32, device=device),
    )
    for tiles in piece.launches:
        own = slice(tiles.first, tiles.last)
        triton_kernels.launch(
            triton_kernels.merge_tiles,
            (tiles.last - tiles.first,),
            *view.arguments(raw, tiles),
            cuts if tiles.rowwise else cuts[own],
            scales,
            merged.content,
            merged.seen[own],
            merged.energies[own],
            merged.base_energy[own],
            merged.bad[own],
            touches,
            view.sources,
            TILE_ROWS=tiles.rows,
            TILE_COLUMNS=tiles.columns,
            TOUCH_BINS=len(touches),
            ROWWISE=tiles.rowwise,
            CONSENSUS=settings.consensus == "mass",
            MEAN=settings.combine == "mean" and not piece.averaged,
            OUT_KIND=reading.KINDS[piece.dtype],
            **view.constants(tiles),
        )
    return merged


def scales_of(scale: float, weights: Sequence[float], device: torch.device) -> torch.Tensor:
    """A piece's scale, then the weights, each rounded once to float32; [1 + sources]."""
    return torch.tensor([scale, *weights], dtype=torch.float32, device=device)


def touch_counts(job: Job, device: torch.device) -> torch.Tensor:
    """Room for the elements that 0, 1, … sources touched, int64, zeros."""
    bins = max(64, layout.power_of_two(len(job.sources) + 1))
    return torch.zeros(bins, dtype=torch.int64, device=device)
