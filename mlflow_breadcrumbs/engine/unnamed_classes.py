"""Heads that are merged though nobody knows whether their classes are the same.

A classifier whose classes have no names calls them `LABEL_0`, `LABEL_1` and so on. Two of as many
such classes look alike, whatever they were trained for, and their heads are merged as one.
"""

import re
from collections.abc import Iterable, Sequence

from mlflow_breadcrumbs.engine import alignment, checkpoints, library_configs
from mlflow_breadcrumbs.support import wording

CLASSIFIER = re.compile(r"For\w*Classification")
"""In the name of an architecture: it tells classes apart."""


def merged(
    sources: Sequence[checkpoints.Checkpoint], names: Iterable[str], *, total: int
) -> tuple[str, ...]:
    """The base's tensors, of those that are merged, that belong to such heads; sorted.

    Args:
        sources: as they are merged, those that are at hand.
        names: of the tensors that are merged.
        total: sources of the merge; a single one is merged with nobody's head.
    """
    found: set[str] = set()
    for source in sources if total > 1 else ():
        aligned = alignment.of(source)
        whole = source.source if isinstance(source, alignment.Aligned) else source
        config = library_configs.read(whole)
        if config is None or not _is_unnamed(config):
            continue
        backbone = config.backbone(whole)
        if backbone is None:
            continue
        read = aligned.names if aligned is not None else {}
        found |= {name for name in names if not read.get(name, name).startswith(backbone)}
    return tuple(sorted(found))


def note(names: Sequence[str]) -> str:
    """What is to be said of such tensors, a sentence without its full stop."""
    patterns = " ".join(
        f"--own '{first}.*'" for first in dict.fromkeys(name.partition(".")[0] for name in names)
    )
    return (
        f"heads are merged ({wording.listed(names)}) whose classes have no names (LABEL_0, …), so "
        "it is not known whether they mean the same in all sources. Where they don't, name them "
        f"(id2label) or keep each source's head ({patterns})"
    )


def _is_unnamed(config: library_configs.LibraryConfig) -> bool:
    """Whether a model is a classifier whose classes have the names that libraries give them."""
    is_classifier = CLASSIFIER.search(config.architecture) is not None
    return is_classifier and all(name == f"LABEL_{number}" for number, name in config.labels)
