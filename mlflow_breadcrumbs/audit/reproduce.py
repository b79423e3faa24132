"""Merge a registered version again, from its lineage alone, and compare the bits.

Nothing is registered. The arithmetic is fixed to the bit on every machine and by every backend, so
the digest must come out again; if it does not, the tensors that differ are named. Only where the
recipe decomposes matrices, they may differ within the tolerance that the lineage states.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.audit import evidence
from mlflow_breadcrumbs.engine import adapters, backends, checkpoints, merging, tolerance
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import progress

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A merge that was done again."""

    uri: str
    recorded_digest: str
    """Weights digest that `lineage.json` names."""
    reproduced_digest: str
    """Weights digest that came out now."""
    registered_digest: str | None
    """Weights digest of the bytes in the registry; `None` where they can't be read."""
    differences: tuple[tolerance.Deviation, ...]
    """Between the registered and the reproduced weights, by the tensor's name."""
    tensors: int
    backend: str
    seconds: float

    @property
    def identical(self) -> bool:
        """Whether recorded, reproduced and registered weights are the same, bit by bit."""
        return self.recorded_digest == self.reproduced_digest == self.registered_digest

    @property
    def reproduced(self) -> bool:
        """Whether they are identical, or as near as the lineage allows.

        The registered weights are the recorded ones, bit by bit, in either case.
        """
        return self.recorded_digest == self.registered_digest and all(
            difference.within for difference in self.differences
        )

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        verdicts = {"identical": self.identical, "reproduced": self.reproduced}
        return verdicts | dataclasses.asdict(self)


def reproduce(
    uri: str,
    *,
    backend: backends.Backend | None = None,
    show: progress.Progress = progress.silent,
) -> Reproduction:
    """Merge a version again and compare the weights.

    Args:
        uri: of a merged version.
        backend: computes the merge; `choosing.choose()` when not given.
        show: is told the bytes read.

    Raises:
        RegistryError: the version, its `lineage.json` or the bytes of a source can't be found.
        StatementError: its `lineage.json` is none.
        IntegrityError: `lineage.json`, or the bytes of the base or of a source, were changed.
    """
    resolved = versions.resolve(uri)
    with versions.workspace() as folder, contextlib.ExitStack() as stack:
        _, stated = contents.read_statement(resolved)
        base, *sources = adapters.open_all(stack, (_find(entry, folder) for entry in stated.inputs))
        again = merging.merge(
            base,
            sources,
            stated.settings,
            folder / "again" / "model.safetensors",
            labels=[entry.uri for entry in stated.sources],
            backend=backend,
            expected=[entry.weights_digest for entry in stated.inputs],
            max_norm_ratio=None,
            keep_running=bool(stated.running),
            show=show,
        )
        registered, differences = _compare(resolved, again, folder, stated.tolerances)
    return Reproduction(
        uri=resolved.uri,
        recorded_digest=stated.weights_digest,
        reproduced_digest=again.weights_digest,
        registered_digest=registered,
        differences=differences,
        tensors=again.merged_tensors,
        backend=again.backend,
        seconds=again.seconds,
    )


def _find(stated: statement.Input, folder: Path) -> Path:
    """The checkpoint of a merge's input, by its version or else by its logged model."""
    version, deleted = evidence.find(stated)
    if isinstance(version, errors.BreadcrumbsError):
        raise errors.RegistryError(
            f"the {stated.role} {stated.uri} is gone, so the merge can't be done again: {version}"
        ) from version
    if deleted:
        _logger.warning("%s was deleted; taking the bytes of %s", stated.uri, version.uri)
    opened = versions.open_version(version, folder)
    alone = evidence.main_digest(opened) == stated.weights_digest
    return opened.path if alone else opened.weights


def _compare(
    resolved: versions.ResolvedVersion,
    again: merging.MergeResult,
    folder: Path,
    tolerances: Mapping[str, float],
) -> tuple[str | None, tuple[tolerance.Deviation, ...]]:
    """The digest of the registered weights, and where they differ from the reproduced ones."""
    try:
        weights = versions.open_version(resolved, folder).weights
        digest = checkpoints.weights_digest(weights)
    except errors.UnreachableError:
        raise
    except (errors.RegistryError, errors.CheckpointError) as error:
        _logger.warning("the registered weights can't be compared: %s", error)
        return None, ()
    if digest == again.weights_digest:
        return digest, ()
    with (
        checkpoints.Checkpoint.open(weights) as registered,
        checkpoints.Checkpoint.open(again.output) as reproduced,
    ):
        one, other = (
            {name: file.tensor(name) for name in file.names} for file in (registered, reproduced)
        )
        return digest, tolerance.differences(one, other, again.recipe, tolerances)
