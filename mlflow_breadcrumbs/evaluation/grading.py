"""Models measured by the user's own evaluator: what it says is read, held against limits, recorded.

```python
grader = grading.Grader(evaluator_files.read("scores:f1"), "test")
grader.examine(subject, grader.evaluator.tasks)["sentiment"].value
```
"""

import dataclasses
import numbers
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.evaluation import evaluator_files, evaluators, examiners, scorecard, scores
from mlflow_breadcrumbs.support import progress, scales, wording

NEAR = 0.01
"""How far a fraction times its examples may be from a whole number: it may have been rounded."""
MOST = 1_000
"""Tasks that one evaluator may name."""

_FIELDS = ("metric", "value", "n", "greater_is_better", "range")


class Grader:
    """The examiner that asks a user's evaluator.

    Args:
        evaluator: what the user named.
        split: of the data.
        show: is told about the models.
    """

    def __init__(
        self,
        evaluator: evaluator_files.UserEvaluator,
        split: str,
        show: progress.Progress = progress.silent,
    ) -> None:
        self.evaluator, self._split, self._show = evaluator, split, show
        self._data: dict[Path, str] = {}
        for exam in evaluator.exams:
            exam.file(split)  # refused before anything is measured

    def examine(
        self, subject: examiners.Examined, tasks: Sequence[str] = ()
    ) -> Mapping[str, scores.Grade]:
        """The grade on each of these tasks; on all that the evaluator knows, where none are named.

        Raises:
            EvaluatorError: it fails, or what it says is no result, or not of these tasks.
        """
        known = self.evaluator.tasks
        wanted = tasks or known
        if strange := [name for name in tasks if known and name not in known]:
            raise errors.EvaluatorError(
                f"the evaluator {self.evaluator.description} has no task {strange[0]!r}; it has "
                f"{', '.join(known)}"
            )
        exams = [each for each in self.evaluator.exams if each.task in (None, *wanted)]
        found: dict[str, scores.Grade] = {}
        with self._show(f"evaluate {subject.label}", total=len(exams), unit="tasks") as advance:
            for exam in exams:
                found |= self._one(exam, subject)
                advance(1)
        if lacking := [name for name in wanted if name not in found]:
            raise errors.EvaluatorError(
                f"the evaluator {self.evaluator.description} says nothing of "
                f"{', '.join(lacking)} for {subject.label}; it says something of "
                f"{', '.join(found)}. Let it name the same tasks for every model"
            )
        return {name: found[name] for name in wanted or found}

    def _one(
        self, exam: evaluator_files.Exam, subject: examiners.Examined
    ) -> dict[str, scores.Grade]:
        """What one evaluator says of a model."""
        data = exam.file(self._split)
        if exam.task is None and subject.own:
            raise errors.EvaluatorError(
                f"{subject.label} has a head of its own for each of {', '.join(subject.own)}, and "
                f"the evaluator {exam.means.description} names its tasks itself; give a file of "
                "evaluators that says which is for which task"
            )
        with subject.place(exam.task) as folder:
            asked = evaluators.Asked(folder, self._split, exam.task, data, subject.uri)
            started = time.perf_counter()
            answer = exam.means.result(asked)
        seconds = time.perf_counter() - started
        origin = f"the evaluator {exam.means.description} of {subject.label}"
        said = _by_task(answer, exam, origin)
        digest = exam.digest if data is None else self._digest(data)
        found = {}
        for task, (scale, value, total, counted) in said.items():
            correct = _correct(value, total, counted, f"{origin}: {task}")
            found[task] = scores.Grade(
                task=task,
                scale=scale,
                value=value if correct is None or total is None else correct / total,
                total=total,
                correct=correct,
                image_set=exam.means.description if data is None else data.name,
                dataset_digest=digest,
                evaluator=exam.means.description,
                evaluator_digest=exam.digest,
                seconds=seconds / len(said),
            )
        return found

    def basis(self, task: str) -> tuple[str, str] | None:
        """The digests of the data and of the evaluator of a task; `None` if it is not known yet."""
        for exam in self.evaluator.exams:
            if exam.task == task:
                data = exam.file(self._split)
                return (exam.digest if data is None else self._digest(data)), exam.digest
        return None

    def scale(self, task: str) -> scales.Scale | None:
        """What a task's values mean; `None` where that is not known yet."""
        return next((each.scale for each in self.evaluator.exams if each.task == task), None)

    def _digest(self, data: Path) -> str:
        """Of a data file's bytes; read once."""
        if data not in self._data:
            self._data[data] = checkpoints.file_digest(data)
        return self._data[data]


_Said = tuple[scales.Scale, float, int | None, bool]
"""The scale, the value, the number of examples, and whether the value is a fraction of them."""


def _by_task(answer: Any, exam: evaluator_files.Exam, origin: str) -> dict[str, _Said]:
    """What an answer says, by task.

    A declared task's is a number, or a mapping with its metric or `value`, and perhaps `n`; either
    may be under the name of the task. An evaluator of several gives a mapping of each task to a
    number or to a mapping with `metric`, `value`, `n`, `greater_is_better` and `range`; an `n`
    beside numbers is the number of examples of each.
    """
    if exam.task is not None and exam.scale is not None:
        if isinstance(answer, Mapping) and isinstance(answer.get(exam.task), Mapping):
            answer = answer[exam.task]
        value, total = _declared(answer, exam.task, exam.scale, origin)
        return {exam.task: (exam.scale, _checked(value, exam.scale, origin), total, exam.counted)}
    if not isinstance(answer, Mapping) or not 0 < len(answer) <= MOST:
        raise errors.EvaluatorError(
            f"{origin} gave {_short(answer)}; let it give a mapping of tasks or metrics to numbers"
        )
    counts = {"n": answer["n"]} if _is_count(answer) else {}
    return {
        str(name): _undeclared(str(name), entry, counts, origin)
        for name, entry in answer.items()
        if not (counts and name == "n")
    }


def _is_count(answer: Mapping[Any, Any]) -> bool:
    """Whether `n` beside metrics is their number of examples, and no metric of its own."""
    return len(answer) > 1 and not isinstance(answer.get("n", {}), Mapping)


def _declared(answer: Any, task: str, scale: scales.Scale, origin: str) -> tuple[float, int | None]:
    """The value of a task whose metric is declared, and its number of examples."""
    if not isinstance(answer, Mapping):
        return _number(answer, f"{origin}: {task}"), None
    keys = [key for key in (scale.metric, "value", task) if key in answer]
    if not keys:
        raise errors.EvaluatorError(
            f"{origin} gave no {scale.metric} for the task {task}; it gave "
            f"{', '.join(map(str, answer)) or 'nothing'}"
        )
    return _number(answer[keys[0]], f"{origin}: {keys[0]}"), _examples(answer, origin)


def _undeclared(name: str, entry: Any, counts: Mapping[str, Any], origin: str) -> _Said:
    """A task that the evaluator names itself; a bare number is a metric of its own name, 0…1."""
    if not scales.NAME.fullmatch(name):
        raise errors.EvaluatorError(
            f"{origin} names {_short(name)}, which is not of the form {scales.NAME.pattern}"
        )
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"value": entry, **counts}
    if strange := [key for key in fields if key not in _FIELDS]:
        raise errors.EvaluatorError(
            f"{origin} gives {name} the field {_short(strange[0])}; it may have "
            f"{', '.join(_FIELDS)}"
        )
    if "value" not in fields:
        raise errors.EvaluatorError(f"{origin} gives {name} no value")
    metric = fields.get("metric", "accuracy" if isinstance(entry, Mapping) else name)
    try:
        low, high = fields.get("range", (0.0, 1.0))
        ends = (_end(low, -1, origin), _end(high, 1, origin))
        scale = scales.Scale(str(metric), bool(fields.get("greater_is_better", True)), *ends)
    except (TypeError, ValueError) as error:
        raise errors.EvaluatorError(f"{origin}: {name}: {error}") from error
    value = _checked(_number(fields["value"], f"{origin}: {name}"), scale, origin)
    return scale, value, _examples(fields, origin), scale.is_accuracy


def _end(value: Any, sign: int, origin: str) -> float:
    """An end of a range; null is without end, for which JSON has no number."""
    return sign * float("inf") if value is None else _number(value, f"{origin}: an end of a range")


def _number(value: Any, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise errors.EvaluatorError(f"{origin} is {_short(value)}, which is no number")
    return float(value)


def _checked(value: float, scale: scales.Scale, origin: str) -> float:
    if fault := scale.fault(value):
        raise errors.EvaluatorError(
            f"{origin} says that {scale.metric} is {fault}; mend it, or give the metric its range "
            "in a file of evaluators"
        )
    return value


def _examples(fields: Mapping[str, Any], origin: str) -> int | None:
    """The number of examples, where it is said."""
    if fields.get("n") is None:
        return None
    found = _number(fields["n"], f"{origin}: n")
    if not (found >= 1 and found.is_integer()):
        raise errors.EvaluatorError(
            f"{origin} says that n is {found:g}; it is the number of examples, at least 1"
        )
    return int(found)


def _correct(value: float, total: int | None, counted: bool, origin: str) -> int | None:
    """How many examples are right, where a value is the fraction of them."""
    if total is None or not counted:
        return None
    right = value * total
    if abs(right - round(right)) > NEAR:
        raise errors.EvaluatorError(
            f"{origin} is {value:g} of {wording.counted(total, 'examples')}, which is no whole "
            "number of them; give the fraction with all its digits, or `counted: false` in a file "
            "of evaluators"
        )
    return round(right)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def measure_before(
    grader: Grader,
    base: examiners.Examined,
    sources: Sequence[examiners.Examined],
    owners: Mapping[str, int],
) -> dict[str, scorecard.TaskScore]:
    """Examine the base and the sources; until `card`, the base stands for the merged model.

    A task's own source is the one that is known to be; where none is, all are examined, and it is
    the one that is best at it.

    Args:
        grader: who measures.
        base: the model that the sources were fine-tuned from.
        sources: in any order.
        owners: the position of the source that is for a task, where that is known.

    Raises:
        TaskError: no fraction of a source's value can be told.
        EvaluatorError: the evaluator fails, or what it says is no result.
    """
    zero_shot = grader.examine(base)
    finetuned: dict[str, tuple[str, scores.Grade]] = {}
    for number, source in enumerate(sources):
        own = [name for name in zero_shot if owners.get(name, number) == number]
        if not own:
            continue
        for name, grade in grader.examine(source, own).items():
            _check_scale(grade, zero_shot[name])
            best = finetuned.get(name)
            if best is None or grade.scale.gain(grade.value, best[1].value) > 0:
                finetuned[name] = source.label, grade
    for _, grade in finetuned.values():
        scorecard.check_denominator(grade)
    return {
        name: scorecard.TaskScore(name, finetuned[name][0], found, finetuned[name][1], found)
        for name, found in zero_shot.items()
    }


def _check_scale(grade: scores.Grade, first: scores.Score) -> None:
    """Raise `EvaluatorError` where a task is measured by one metric here and by another there."""
    if grade.scale != first.scale:
        one, other = (each.scale.to_dict() for each in (first, grade))
        raise errors.EvaluatorError(
            f"the evaluator {grade.evaluator} measures {grade.task} by {one}, and then by {other}; "
            "let it measure every model alike"
        )


def card(
    before: Mapping[str, scorecard.TaskScore], after: Mapping[str, scores.Grade]
) -> scorecard.Scorecard:
    """What was measured before, with the merged model beside it."""
    for name, grade in after.items():
        _check_scale(grade, before[name].zero_shot)
    found = scorecard.Scorecard(
        tuple(dataclasses.replace(before[name], merged=grade) for name, grade in after.items()), ()
    )
    found.rows()  # refuses what no fraction can be told of, before anybody relies on it
    return found
