"""What is known of a version when it is judged: plain records, so that the judgement is pure.

`gathering` reads them from MLflow and the ledger; a test makes its own.
"""

import dataclasses
import datetime
import math
import sys
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs.support import people


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How many images of one task these very weights got right."""

    task: str
    split: str
    """`train`, `validation` or `test`."""
    dataset_digest: str
    """Of the image set, `sha256:…`."""
    correct: int
    """0 … `total`."""
    total: int
    """Images, at least 1."""
    measured: datetime.datetime
    """When the images were read; with its time zone."""
    origin: str
    """Where it is recorded: `run …` or `lineage.json`."""
    finetuned_accuracy: float | None = None
    """Of the source that was fine-tuned for the task, on the same images, 0…1."""

    def __post_init__(self) -> None:
        """Refuse counts that no measurement gives; `ValueError`."""
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"{self.correct} of {self.total} images of {self.task} is no count")

    @property
    def accuracy(self) -> float:
        """Fraction of the images, 0…1."""
        return self.correct / self.total

    @property
    def normalized(self) -> float | None:
        """The accuracy as a fraction of the source's; may exceed 1."""
        return self.accuracy / self.finetuned_accuracy if self.finetuned_accuracy else None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric that a run carries, whatever it means."""

    value: float
    """May be NaN, or infinite."""
    run_id: str

    @property
    def is_number(self) -> bool:
        """Whether it is finite: MLflow keeps an infinite value as the largest that there is."""
        return abs(self.value) < sys.float_info.max  # which NaN isn't either


@dataclasses.dataclass(frozen=True)
class Champion:
    """The version that has the alias now."""

    uri: str
    weights_digest: str | None
    """As recorded; `None` where nobody did."""
    tasks: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    set_aside: tuple[str, ...] = ()
    """Measurements that were found and can't be relied on, and why."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found, in short."""

    failures: tuple[str, ...]
    """`check: detail` of each that is changed or missing."""
    right: int
    """How many checks were right."""
    unknown: int
    """How many had nothing to be held against."""


@dataclasses.dataclass(frozen=True)
class Licence:
    """What the base or a source says of its licence."""

    uri: str
    role: str
    """`base` or `source`; `version` for one that was not merged."""
    licence: str | None


@dataclasses.dataclass(frozen=True)
class Approval:
    """One person's word for these weights, which was not withdrawn."""

    person: str
    """In the form of `people.normal`."""
    time: str
    comment: str
    event: int
    """Of the ledger."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that a policy can ask about a version."""

    uri: str
    """Pinned, `models:/NAME/VERSION`."""
    weights_digest: str
    """Of the bytes as they are now."""
    recorded_digest: str | None
    """Of the bytes as they were registered."""
    tasks: tuple[str, ...] = ()
    """That the version was made for."""
    measurements: tuple[Measurement, ...] = ()
    """Of weights with this digest, in any order."""
    set_aside: tuple[str, ...] = ()
    """Measurements that were found and can't be relied on, and why."""
    champion: Champion | None = None
    verification: Verification | None = None
    """`None` where nobody asked."""
    licences: tuple[Licence, ...] = ()
    approvals: tuple[Approval, ...] = ()
    makers: tuple[str, ...] = ()
    """Who made these weights, and so can't approve them."""
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    """Of the runs that are about these weights."""

    def to_dict(self) -> dict[str, Any]:
        """For `verdict.json`."""
        found = dataclasses.asdict(self)
        for holder in (found, found["champion"] or {}):
            for entry in holder.get("measurements", ()):
                entry["measured"] = entry["measured"].isoformat()
            for entry in holder.get("metrics", {}).values():
                if not math.isfinite(entry["value"]):  # which JSON has no number for
                    entry["value"] = str(entry["value"])
        return found


def person_of(actor: str) -> str:
    """Who `user@host` is: the same user on another machine, or by another spelling, is the same."""
    return people.normal(actor.rpartition("@")[0] or actor)
