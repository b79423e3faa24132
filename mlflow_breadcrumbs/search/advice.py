"""What the geometry of the task vectors says about merging them, in plain sentences.

What is advised was measured, see docs/study.md; what helped nothing there, such as a consensus of
signs where signs conflict, is not advised.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlflow_breadcrumbs.engine import recipe, rounding, running, unnamed_classes
from mlflow_breadcrumbs.engine.backends.cpu import geometry
from mlflow_breadcrumbs.pipeline import configurations

FAR = 10.0
"""So many times the median norm of the others, and a source is taken for another base's."""

SPREAD = 2.0
"""The longest task vector over the shortest from which the difference is named."""

ALIKE = 0.95
"""The cosine from which two sources count as copies of one another."""

OPPOSED = -0.1
"""The cosine from which down two sources undo each other."""

LITTLE = 0.2
"""The share of a task vector's energy that its mask should keep."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know before these sources are merged."""

    kind: str
    """`refused`, `heads`, `configuration`, `preprocessing`, `running`, `classes`, `pattern`,
    `rounding`, `another base`, `norms`, `alike`, `opposed`, `energy`, or `none`."""
    sources: tuple[str, ...]
    """Whom it is about."""
    advice: str
    """What was found, the values, and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return dataclasses.asdict(self) | {"sources": list(self.sources)}


@dataclasses.dataclass(frozen=True)
class Comparand:
    """What the findings are drawn from."""

    labels: tuple[str, ...]
    """How messages name each source."""
    measured: geometry.Geometry
    """Of all merged tensors together."""
    recipe: recipe.MergeRecipe
    max_norm_ratio: float
    """What `merge` refuses a source beyond, in norms of the base."""
    digests: tuple[str, ...]
    """What tells the sources' weights apart: their digests, where any may have the same."""
    head_clash: str | None = None
    """Why the sources' heads can't go into one version."""
    fits: tuple[configurations.Fit, ...] = ()
    """Per source, how its configuration compares with the base's."""
    running: tuple[str, ...] = ()
    """Running statistics and counters that the merge leaves the base's."""
    idle: tuple[str, ...] = ()
    """Of each pattern of the recipe that matches no tensor, a sentence without its full stop."""
    unnamed: tuple[str, ...] = ()
    """Tensors of heads that are merged though their classes have no names."""
    noises: tuple[rounding.Noise, ...] = ()
    """Of the sources that are stored in fewer bits than the base."""


def findings(evidence: Comparand) -> tuple[Finding, ...]:
    """All that was found, what `merge` would refuse first; one of the kind `none` if nothing."""
    found = tuple(finding for find in _FINDERS for finding in find(evidence))
    return found or (
        Finding(
            "none",
            (),
            "Nothing in the weights speaks against merging these sources; an evaluation decides.",
        ),
    )


def _refused(evidence: Comparand) -> Iterator[Finding]:
    """Copies and unchanged sources: `merge` refuses them, since they only repeat."""
    labels, norms = evidence.labels, evidence.measured.norms
    for label, norm in zip(labels, norms, strict=True):
        if norm == 0:
            yield Finding(
                "refused",
                (label,),
                f"{label} has the weights of the base, so it adds nothing: leave it out.",
            )
    for one, other in _pairs(len(labels)):
        if evidence.digests[one] == evidence.digests[other] and norms[one] > 0:
            yield Finding(
                "refused",
                (labels[one], labels[other]),
                f"{labels[one]} and {labels[other]} have the same weights, and merge refuses "
                f"that: name one of them, with a weight ({labels[one]}=2).",
            )


def _heads(evidence: Comparand) -> Iterator[Finding]:
    """Two heads for one task: `merge` refuses them."""
    if evidence.head_clash is not None:
        yield Finding("heads", (), f"Merge refuses these heads: {evidence.head_clash}.")


def _configurations(evidence: Comparand) -> Iterator[Finding]:
    """Sources that compute, or preprocess images, otherwise than the base."""
    for fit in evidence.fits:
        if fit.refusal:
            yield Finding("configuration", (fit.uri,), f"Merge refuses a source: {fit.refusal}.")
        elif fit.note:
            yield Finding("preprocessing", (fit.uri,), f"{fit.note}.")


def _engine(evidence: Comparand) -> Iterator[Finding]:
    """What a merge says of running statistics, classes, patterns and rounding."""
    if evidence.running:
        said = running.note(evidence.running)
        yield Finding("running", (), f"{said[0].upper()}{said[1:]}.")
    if evidence.unnamed:
        said = unnamed_classes.note(evidence.unnamed)
        yield Finding("classes", (), f"{said[0].upper()}{said[1:]}.")
    for said in evidence.idle:
        yield Finding("pattern", (), f"{said[0].upper()}{said[1:]}.")
    for noise in evidence.noises:
        if note := noise.note():
            yield Finding("rounding", (noise.label,), f"{note}.")


def _another_base(evidence: Comparand) -> Iterator[Finding]:
    """Sources that are farther from the base than fine-tuning goes, or than all others are."""
    norms, ratios = evidence.measured.norms, evidence.measured.ratios
    for number, label in enumerate(evidence.labels):
        others = np.delete(norms, number)
        others = others[others > 0]
        typical = float(np.median(others)) if others.size else 0.0
        if ratios[number] > evidence.max_norm_ratio:
            why = (
                f"its task vector is {ratios[number]:.3g} times as long as the base, and merge "
                f"refuses more than {evidence.max_norm_ratio:g}"
            )
        elif typical and norms[number] > FAR * typical:
            why = f"its task vector is {norms[number] / typical:.3g} times as long as the others'"
        else:
            continue
        yield Finding(
            "another base",
            (label,),
            f"{label} looks fine-tuned from another base: {why}. Give the base that it comes "
            "from, or leave it out.",
        )


def _norms(evidence: Comparand) -> Iterator[Finding]:
    """Lengths that differ by much: the longer task vectors drown the shorter ones in the sum."""
    away = {label for finding in _another_base(evidence) for label in finding.sources}
    norms = {
        label: float(norm)
        for label, norm in zip(evidence.labels, evidence.measured.norms, strict=True)
        if norm > 0 and label not in away
    }
    if len(norms) < 2 or max(norms.values()) < SPREAD * min(norms.values()):
        return
    longest, shortest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    middle = float(np.exp(np.mean(np.log(list(norms.values())))))
    weighed = " ".join(f"--source {label}={middle / norm:.2g}" for label, norm in norms.items())
    yield Finding(
        "norms",
        (longest, shortest),
        f"The task vectors differ in length by a factor of {norms[longest] / norms[shortest]:.2g}: "
        f"{longest} has {norms[longest]:.3g}, {shortest} {norms[shortest]:.3g}. In a sum the long "
        f"ones drown the short ones. --balance shortens those that are far above the median; "
        f"weights that make all alike: {weighed}.",
    )


def _alike(evidence: Comparand) -> Iterator[Finding]:
    """Two sources that are nearly one."""
    cosines = evidence.measured.cosines
    for one, other in _pairs(len(evidence.labels)):
        same = evidence.digests[one] == evidence.digests[other]
        if cosines[one, other] > ALIKE and not same:
            pair = evidence.labels[one], evidence.labels[other]
            yield Finding(
                "alike",
                pair,
                f"{pair[0]} and {pair[1]} point the same way (cosine {cosines[one, other]:.3f}), "
                "so their changes count twice: keep one of them, or give each half its weight.",
            )


def _opposed(evidence: Comparand) -> Iterator[Finding]:
    """Two sources that undo each other."""
    cosines = evidence.measured.cosines
    for one, other in _pairs(len(evidence.labels)):
        if cosines[one, other] < OPPOSED:
            pair = evidence.labels[one], evidence.labels[other]
            yield Finding(
                "opposed",
                pair,
                f"{pair[0]} and {pair[1]} pull in opposite directions (cosine "
                f"{cosines[one, other]:.2f}): merged, each undoes part of the other. Merge them "
                "apart, or see in an evaluation which of them to keep.",
            )


def _energy(evidence: Comparand) -> Iterator[Finding]:
    """Masks that leave too little of a task vector."""
    kept = evidence.measured.energy_kept
    little = [
        label
        for label, share, norm in zip(evidence.labels, kept, evidence.measured.norms, strict=True)
        if share < LITTLE and norm > 0
    ]
    if little:
        yield Finding(
            "energy",
            tuple(little),
            f"At density {evidence.recipe.density:g} and gamma {evidence.recipe.gamma:g} the masks "
            f"keep less than {LITTLE:.0%} of the energy of {', '.join(little)} (least: "
            f"{min(share for share in kept if share > 0):.1%}). Make up for it with a larger "
            "--alpha; density and gamma themselves hardly matter then.",
        )


_FINDERS: Sequence[Callable[[Comparand], Iterator[Finding]]] = (
    _refused,
    _heads,
    _configurations,
    _engine,
    _another_base,
    _norms,
    _alike,
    _opposed,
    _energy,
)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(one, other) for one in range(count) for other in range(one + 1, count)]
