"""How a merge is computed: one contract, several backends, the same bits from each.

Read `reference` first: it is the definition. `arithmetic` and `ranks` hold what all backends share,
`copying` is for what is not merged. `cpu` and `gpu` are rooms of their own, whose first lines name
their modules; both hand recipes that decompose matrices to `cpu.decomposing`, which takes its
formulas from `matrices`: those of `singular`, `subspaces`, `covariance` or `ace`, then
`calibration`, all of which rest on `symmetric`. `choosing` takes one of the
backends, by device and by name.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, recipe, writing
from mlflow_breadcrumbs.support import progress


@dataclasses.dataclass(frozen=True)
class Job:
    """A merge that has been checked and can be computed."""

    base: checkpoints.Checkpoint
    sources: Sequence[checkpoints.Checkpoint]
    labels: Sequence[str]
    """How messages name each source."""
    weights: Sequence[float]
    recipe: recipe.MergeRecipe
    merged: Sequence[str]
    """The tensors to merge, sorted by name."""
    copied: Sequence[str]
    """The other tensors, which are the base's; sorted by name."""
    dtypes: dict[str, torch.dtype]
    """The output dtype of each merged tensor."""
    running: Sequence[str] = ()
    """Running statistics and counters, which are the base's whatever a source has; sorted."""
    depths: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """How deep in the model each tensor lies, from 0 to 1; empty where the recipe does not ask."""
    verify: bool = False
    """Whether to compute the digests of the inputs."""

    @property
    def inputs(self) -> tuple[checkpoints.Checkpoint, ...]:
        """The base, then the sources."""
        return (self.base, *self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes that are read: the job's tensors in all inputs."""
        names = (*self.merged, *self.copied)
        return sum(checkpoint.info(name).nbytes for checkpoint in self.inputs for name in names)


@dataclasses.dataclass(frozen=True)
class MaskStatistics:
    """What the mask did to one source's task vector in one tensor."""

    tensor: str
    source: int
    """Position of the source, from 0."""
    elements: int
    kept: int
    smallest_kept: float
    """Smallest magnitude |τ| that was kept; 0 when nothing was."""
    largest_kept: float
    """Largest magnitude |τ| that was kept; 0 when nothing was."""
    energy: float
    """Σ τ² over all elements, in float64; backends differ in its last bits."""
    energy_kept: float
    """Σ τ² over the kept elements, in float64; backends differ in its last bits."""


MergedTensor = tuple[list[MaskStatistics], list[int], float]
"""What is known of a merged tensor: its masks' statistics, the touched elements, and Σ θ²."""


@dataclasses.dataclass
class Outcome:
    """What a backend found on its way; the weights went to the writer."""

    statistics: list[MaskStatistics]
    """By tensor, in the job's order, then by source."""
    touched: list[int]
    """[sources + 1] merged elements that 0, 1, … sources changed: their contribution there, after
    mask and consensus, is not zero."""
    base_energies: list[float]
    """Σ θ² of each merged tensor of the base, in the job's order, in float64; backends differ in
    their last bits."""
    hexdigests: list[dict[str, str]]
    """Per input, base first: the SHA-256 of each merged tensor's bytes; empty if not verified."""

    @property
    def base_energy(self) -> float:
        """Σ θ² over all merged tensors of the base."""
        return sum(self.base_energies)

    @classmethod
    def of(cls, merged: Sequence[MergedTensor], hexdigests: list[dict[str, str]]) -> "Outcome":
        """What is known of all tensors, given in the job's order."""
        return cls(
            statistics=[entry for statistics, _, _ in merged for entry in statistics],
            touched=[sum(counts) for counts in zip(*(t for _, t, _ in merged), strict=True)],
            base_energies=[energy for _, _, energy in merged],
            hexdigests=hexdigests,
        )


class Backend(Protocol):
    """Computes the merged tensors of a job."""

    name: str

    def run(self, job: Job, writer: writing.Writer, advance: progress.Advance) -> Outcome:
        """Write every tensor of `job.merged`, and tell `advance` the bytes read.

        Raises:
            MergeError: an input or a result is not finite; names the source, the tensor and the
                flat index of the first one.
        """
        ...


@contextlib.contextmanager
def giving_up(pool: concurrent.futures.Executor) -> Iterator[None]:
    """Drop what waits in a pool when the work is interrupted or breaks.

    A `MergeError` is none of that: it is told when all is done.
    """
    try:
        yield
    except errors.MergeError:
        raise
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
