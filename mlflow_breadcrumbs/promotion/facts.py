"""What is known of a version when it is judged: plain records, so that the judgement is pure.

`gathering` reads them from MLflow and the ledger; a test makes its own.
"""

import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_breadcrumbs.support import people, scales


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How many images of one task these very weights got right."""

    task: str
    split: str
    """`train`, `validation` or `test`."""
    dataset_digest: str
    """Of the image set, or of the data, `sha256:…`."""
    correct: int | None
    """0 … `total`; `None` where the metric is no fraction of counted examples."""
    total: int | None
    """Images or other examples, at least 1; `None` where nobody says."""
    measured: datetime.datetime
    """When the images were read; with its time zone."""
    origin: str
    """Where it is recorded: `run …` or `lineage.json`."""
    finetuned_accuracy: float | None = None
    """Of the source that was fine-tuned for the task, on the same images, 0…1; of another metric,
    its value."""
    value: float | None = None
    """Where there is no count: in the unit of the scale."""
    scale: scales.Scale = scales.ACCURACY
    """What the value means."""
    evaluator: str = ""
    """Digest of the user's evaluator that measured it; empty for images."""

    def __post_init__(self) -> None:
        """Refuse counts and values that no measurement gives; `ValueError`."""
        if self.total is not None and self.total < 1:
            raise ValueError(f"{self.total} examples of {self.task} is no count")
        if self.correct is not None and not 0 <= self.correct <= (self.total or 0):
            raise ValueError(f"{self.correct} of {self.total} images of {self.task} is no count")
        if self.correct is None and (fault := self.scale.fault(self.accuracy)):
            raise ValueError(f"{self.scale.metric} of {self.task} is {fault}")

    @property
    def accuracy(self) -> float:
        """Fraction of the images, 0…1; of another metric, its value."""
        if self.correct is None or self.total is None:
            return math.nan if self.value is None else self.value
        return self.correct / self.total

    @property
    def counts(self) -> tuple[int, int] | None:
        """The right ones and all, for an interval; `None` where they were not counted."""
        if self.correct is None or self.total is None:
            return None
        return self.correct, self.total

    @property
    def normalized(self) -> float | None:
        """What is kept of the source's value, see `Scale.kept`; may exceed 1."""
        if self.finetuned_accuracy is None:
            return None
        return self.scale.kept(self.accuracy, self.finetuned_accuracy)

    @property
    def basis(self) -> "Basis":
        """What another measurement must share to be compared with it."""
        return Basis(self.dataset_digest, self.evaluator, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """For `verdict.json`; of images without what is about evaluators alone."""
        found = dataclasses.asdict(self) | {"measured": self.measured.isoformat()}
        del found["scale"]
        if not self.evaluator:
            del found["value"], found["evaluator"]
            return found
        return found | self.scale.to_dict()


class Basis(NamedTuple):
    """The same data, measured in the same way."""

    dataset_digest: str
    evaluator: str = ""
    """Its digest; empty for images, which this package counts itself."""
    scale: scales.Scale = scales.ACCURACY


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric that a run carries, whatever it means."""

    value: float
    """May be NaN, or infinite."""
    run_id: str


@dataclasses.dataclass(frozen=True)
class Champion:
    """The version that has the alias now."""

    uri: str
    weights_digest: str | None
    """As recorded; `None` where nobody did."""
    tasks: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()
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
    vouched: bool = False
    """Whether a server that knew this person wrote it down."""


@dataclasses.dataclass(frozen=True)
class Recall:
    """Somebody's word against weights, which was not withdrawn."""

    uri: str
    """The version that it was said of."""
    weights_digest: str
    reason: str
    actor: str
    time: str
    event: int
    """Of the ledger; 0 where another has it."""
    vouched: bool = False
    """Whether a server that knew the actor wrote it down."""


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
    recalled: tuple[Recall, ...] = ()
    """Of these weights, and of those that they were made from."""
    promoter: str = ""
    """Who asks for the alias, where a rule asks for that."""
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    """Of the runs that are about these weights: anybody may have written them, so none counts."""

    def to_dict(self) -> dict[str, Any]:
        """For `verdict.json`."""
        found = dataclasses.asdict(self)
        holders = [(found, self.measurements)]
        if self.champion is not None:
            holders.append((found["champion"], self.champion.measurements))
        for holder, measurements in holders:
            holder["measurements"] = [entry.to_dict() for entry in measurements]
            for entry in holder.get("metrics", {}).values():
                if not math.isfinite(entry["value"]):  # which JSON has no number for
                    entry["value"] = str(entry["value"])
        return found


def person_of(actor: str) -> str:
    """Who `user@host` is: the same user on another machine, or by another spelling, is the same."""
    return people.normal(actor.rpartition("@")[0] or actor)
