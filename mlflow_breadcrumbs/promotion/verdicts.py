"""What a judgement says: a rule held against the facts, and all of them together."""

import dataclasses
from typing import Any, Literal

from mlflow_breadcrumbs.support import escaping, tables

Outcome = Literal["passed", "failed", "unknown"]

RENEWED = ("evidence", "images")
"""The kinds of rules that a new measurement may turn from failed to passed."""
MEASURED = (
    "average_accuracy",
    "average_normalized_accuracy",
    "accuracy",
    "accuracy_low",
    "normalized_accuracy",
    "no_regression",
    *RENEWED,
)
"""The kinds of rules that rest on measurements."""
TITLES = ("rule", "value", "limit", "verdict", "why")
"""Of a verdict's table."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule of a policy, held against the facts."""

    name: str
    value: float | int | str | None
    """What was found; `None` where nothing was."""
    limit: float | int | str | None
    """What the policy asks for."""
    verdict: Outcome
    sentence: str
    """Why, in words."""

    @property
    def kind(self) -> str:
        """The name without the task."""
        return self.name.partition("/")[0]

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json` and tables."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All rules, in the order of the policy."""

    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule has passed."""
        return not self.objections

    @property
    def objections(self) -> tuple[Rule, ...]:
        """The rules that have not passed."""
        return tuple(rule for rule in self.rules if rule.verdict != "passed")

    @property
    def wants_measurements(self) -> bool:
        """Whether measuring anew could change it."""
        return any(
            rule.kind in MEASURED and (rule.verdict == "unknown" or rule.kind in RENEWED)
            for rule in self.objections
        )

    @property
    def wants_metrics(self) -> bool:
        """Whether measuring by an evaluator could bring a metric that is unknown."""
        return any(
            rule.name.startswith("metric ") and rule.verdict == "unknown"
            for rule in self.objections
        )

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per rule."""
        return [rule.to_dict() for rule in self.rules]

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and `verdict.json`."""
        return {"passed": self.passed, "rules": self.rows()}

    def cells(self) -> list[list[str]]:
        """The table in Markdown, a row per rule, by `TITLES`."""
        rows = (
            (rule.name, rule.value, rule.limit, rule.verdict, rule.sentence) for rule in self.rules
        )
        return [
            ["" if cell is None else escaping.markdown(_number(cell)) for cell in row]
            for row in rows
        ]

    def to_markdown(self) -> str:
        """The table, for people who open it in MLflow."""
        return tables.to_markdown(TITLES, self.cells()) + "\n"


def _number(cell: float | int | str) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
