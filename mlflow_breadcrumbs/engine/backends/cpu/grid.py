"""The masks of many recipes at once: a sweep reads the sources for them only once.

```
points = [(0.1, 0.0), (0.1, 0.01), (0.2, 0.0)]          # (density, gamma)
for (density, gamma), known in zip(points, grid.thresholds(job, points, threads=4)):
    merge.merge(base, sources, recipe_of(density, gamma), output, backend=cpu.Cpu(4, known=known))
```

The masks depend on density, gamma, unit and the tensors' choice alone; so those of one point serve
every alpha, weight and consensus.
"""

import concurrent.futures
from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine.backends import Job
from mlflow_breadcrumbs.engine.backends.cpu import reading
from mlflow_breadcrumbs.engine.backends.cpu.masking import (
    Mask,
    Masks,
    model_cuts,
    model_masks,
    unit_masks,
)


def thresholds(job: Job, points: Sequence[tuple[float, float]], *, threads: int) -> list[Masks]:
    """The masks of a job at each (density, gamma); its own recipe's are not used.

    Every part of a tensor is read once and counted, in memory, for all points. For the unit
    `model`, and for tensors of more than `reading.PART` elements, four passes serve all points.

    Args:
        job: a planned merge, see `merging.plan`.
        points: (density, gamma) each, as a recipe allows them.
        threads: at least 1.

    Raises:
        MergeError: the base has float64 tensors, whose masks only the reference finds.
    """
    wide = [name for name in job.merged if job.base.info(name).dtype.itemsize == 8]
    if wide:
        raise errors.MergeError(
            f"the base has the tensor {wide[0]!r} as float64; a grid of masks needs float32, "
            "bfloat16 or float16: merge recipe by recipe"
        )
    buffers = reading.by_thread()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        if job.recipe.unit == "model":
            cuts = model_cuts(job, points, pool, buffers)
            return [model_masks(job, found) for found in cuts]
        by_size = sorted(job.merged, key=lambda name: -job.base.info(name).numel)
        pieces = [(name, source) for name in by_size for source in range(len(job.sources))]

        def find(piece: tuple[str, int]) -> list[Mask]:
            name, source = piece
            info = job.base.info(name)
            checkpoint = job.sources[source]
            vector = reading.Vector(buffers(), job.base, checkpoint, name, 0, info.numel)
            return unit_masks(vector, info.shape, job.recipe, points)

        found = list(pool.map(find, pieces))
    return [
        {piece: masks[point] for piece, masks in zip(pieces, found, strict=True)}
        for point in range(len(points))
    ]
