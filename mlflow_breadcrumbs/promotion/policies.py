"""What a version must show before an alias may point at it: a policy, as YAML.

```yaml
average_normalized_accuracy: 0.9            # at least; the mean over the version's tasks
tasks:
  "*": {normalized_accuracy: 0.85}          # every task without a line of its own
  cars: {accuracy: 0.7, accuracy_low: 0.68}
no_regression: {margin: 0.01}               # against the version that has the alias now
evidence: {max_age: 30 days, min_images: 500}
verified: true
licences: [Apache-2.0, MIT]
approvals: 2
freeze:
  - {days: [sat, sun], time_zone: Europe/Berlin, reason: nobody is here}
metrics:
  latency_ms: {threshold: 30, greater_is_better: false}
```

docs/promotion.md has every field and its exact rule. A policy has a digest over its canonical JSON,
so that a decision names exactly the rules that it was made by.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.promotion import fields, windows
from mlflow_breadcrumbs.support import canonical, documents, validation

EVERY = "*"
"""In `tasks`: every task that has no entry of its own."""


class Floor(fields.Strict):
    """What one task must reach."""

    accuracy: fields.Share | None = None
    """At least this accuracy, 0…1."""
    accuracy_low: fields.Share | None = None
    """At least this lower end of the accuracy's 95% Wilson interval, 0…1."""
    normalized_accuracy: fields.Ratio | None = None
    """At least this fraction of the accuracy of the source that was fine-tuned for the task."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.accuracy, self.accuracy_low, self.normalized_accuracy) == (None,) * 3:
            raise ValueError("give accuracy, accuracy_low or normalized_accuracy")
        return self


class NoRegression(fields.Strict):
    """How the version is held against the one that has the alias, task by task."""

    margin: fields.Share = 0.0
    """What may be lost, in accuracy, 0…1."""
    confidence: Annotated[float, pydantic.Field(strict=True, gt=0, lt=1)] = 0.95
    """Of the interval of the difference, 0 < confidence < 1."""
    test: Literal["regression", "non_inferiority"] = "regression"
    """`regression`: refused where a loss beyond the margin is shown. `non_inferiority`: refused
    unless a loss beyond the margin is ruled out."""


class DataSet(fields.Strict):
    """On which images a task must have been measured."""

    digest: fields.Digest | None = None
    """Of the image set, as `evaluate --json` prints it."""
    collected: datetime.date | None = None
    """When the images were taken."""
    max_age: fields.Duration | None = None
    """How old the images may be."""

    @pydantic.model_validator(mode="after")
    def _has_an_age(self) -> Self:
        if (self.collected is None) != (self.max_age is None):
            raise ValueError("max_age needs collected, and collected needs max_age")
        return self


class EvidenceRules(fields.Strict):
    """On which measurements the decision may rest."""

    max_age: fields.Duration | None = None
    """How long ago a task may have been measured."""
    min_images: fields.Count | None = None
    """How many images of each task, at least."""
    split: Literal["train", "validation", "test"] = "test"
    """Of the images."""
    in_ledger: Annotated[bool, pydantic.Field(strict=True)] = False
    """Whether the ledger must have the event of each measurement, with the digest of its file."""
    data: dict[str, DataSet] = pydantic.Field(default_factory=dict)
    """By task."""


class Threshold(fields.Strict):
    """What a metric that was measured must reach: MLflow's own `MetricThreshold`."""

    greater_is_better: Annotated[bool, pydantic.Field(strict=True)]
    threshold: fields.Number | None = None
    """At least this value; at most, where less is better."""
    min_absolute_change: Annotated[fields.Number, pydantic.Field(gt=0)] | None = None
    """Better by so much than the version that has the alias."""
    min_relative_change: Annotated[fields.Share, pydantic.Field(gt=0)] | None = None
    """Better by this fraction of its value."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.threshold is None and not self.compares:
            raise ValueError("give threshold, min_absolute_change or min_relative_change")
        return self

    @property
    def compares(self) -> bool:
        """Whether it asks for more than the version that has the alias."""
        return (self.min_absolute_change, self.min_relative_change) != (None, None)

    def text(self) -> str:
        """The threshold in a few words."""
        sign, word = ("≥", "above") if self.greater_is_better else ("≤", "below")
        changes = (self.min_absolute_change, self.min_relative_change)
        amounts = [
            form.format(change)
            for form, change in zip(("{:g}", "{:.3%}"), changes, strict=True)
            if change is not None
        ]
        parts = [f"{sign} {self.threshold:g}"] if self.threshold is not None else []
        return ", ".join([*parts, *(f"{amount} {word} the champion" for amount in amounts)])


class Policy(fields.Strict):
    """All rules; each that is given must pass."""

    description: str = ""
    average_accuracy: fields.Share | None = None
    """At least this mean over the version's tasks, each counting alike, 0…1."""
    average_normalized_accuracy: fields.Ratio | None = None
    """At least this mean of the normalized accuracies."""
    tasks: dict[str, Floor] = pydantic.Field(default_factory=dict)
    """By task; `*` is every task that has no entry of its own."""
    no_regression: NoRegression | None = None
    evidence: EvidenceRules = EvidenceRules()
    verified: Annotated[bool, pydantic.Field(strict=True)] = False
    """Whether all checks of `verify` must be right."""
    licences: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Which ones the base and the sources may have, as SPDX names."""
    approvals: Annotated[int, pydantic.Field(strict=True, ge=0)] = 0
    """How many people must have approved these weights, none of whom made them."""
    four_eyes: Annotated[bool, pydantic.Field(strict=True)] = False
    """Whether who promotes must be neither who made the weights nor the only one to approve."""
    freeze: tuple[windows.Freeze, ...] = ()
    metrics: dict[str, Threshold] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _has_rules(self) -> Self:
        people = (self.approvals, self.four_eyes)
        rules = (self.verified, self.licences, *people, self.freeze, self.metrics)
        if not self.looks_at_accuracy and not any(rules):
            raise ValueError("it has no rule, so that everything would pass")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, `sha256:…`; comments don't count."""
        return canonical.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, those with their defaults too.

        `in_ledger` and `four_eyes` are left out while they are false: policies from before them
        keep their digest.
        """
        content = self.model_dump(mode="json")
        if not self.four_eyes:
            del content["four_eyes"]
        if not self.evidence.in_ledger:
            del content["evidence"]["in_ledger"]
        return content

    def to_yaml(self) -> str:
        """The policy as a file that has the same digest."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def on_accuracy(self) -> "Policy":
        """The rules that rest on measurements alone."""
        return self.model_copy(
            update={
                "verified": False,
                "licences": None,
                "approvals": 0,
                "four_eyes": False,
                "metrics": {},
            }
        )

    def floor(self, task: str) -> Floor | None:
        """What a task must reach, if anything."""
        return self.tasks.get(task) or self.tasks.get(EVERY)

    @property
    def named_tasks(self) -> tuple[str, ...]:
        """The tasks that the policy names, which a version must have been measured on."""
        names = (*self.tasks, *self.evidence.data)
        return tuple(dict.fromkeys(name for name in names if name != EVERY))

    @property
    def looks_at_accuracy(self) -> bool:
        """Whether any rule needs measurements."""
        asked = self.evidence
        return (
            self.average_accuracy is not None
            or self.average_normalized_accuracy is not None
            or bool(self.tasks or asked.data or asked.max_age or asked.min_images)
            or self.no_regression is not None
        )

    @property
    def needs_champion(self) -> bool:
        """Whether any rule compares with the measurements of the version that has the alias."""
        return self.no_regression is not None or any(
            asked.compares for asked in self.metrics.values()
        )

    @property
    def needs_normalized(self) -> bool:
        """Whether any rule divides by the accuracies of the sources."""
        return self.average_normalized_accuracy is not None or any(
            floor.normalized_accuracy is not None for floor in self.tasks.values()
        )


def load(path: str | Path) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: the file is missing or not a policy; every fault is named with its line.
    """
    origin = f"the policy {path}"
    return _judge(documents.read(path, origin, errors.PolicyError), origin)


def parse(text: str, origin: str = "the policy") -> Policy:
    """A policy from its YAML; see `load`."""
    return _judge(documents.parse(text, origin, errors.PolicyError), origin)


def _judge(document: documents.Document, origin: str) -> Policy:
    """The policy that a document is; every fault is named with its line."""
    root = document.root
    if not isinstance(root, yaml.MappingNode):
        raise errors.PolicyError(f"{origin} is not a mapping of rules, as `approvals: 2`")
    try:
        return Policy.model_validate(document.content)
    except pydantic.ValidationError as error:
        faults = validation.faults(error, Policy, root, "the policy")
    raise errors.PolicyError(f"{origin} is refused:\n  " + "\n  ".join(faults))
