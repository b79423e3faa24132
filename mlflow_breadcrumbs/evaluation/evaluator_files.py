"""What `--evaluator` names: a function, a program, or a file that lists tasks with how to measure.

```yaml
# evaluators.yaml
tasks:
  - name: sentiment
    python: scores:sentiment              # module:function, beside this file
    metric: f1                            # accuracy, where nobody says
    data: data/sentiment.csv              # of the test; or {validation: …, test: …}
  - name: news
    command: [python, score.py, "{model}", "{data}"]
    seconds: 600
    metric: perplexity
    greater_is_better: false
    range: [1, .inf]                      # 0 to 1, where nobody says
    data: data/news.txt
  - name: topics
    mlflow: {metric: accuracy_score, targets: topic, predictions: label, model_type: classifier}
    data: {validation: data/topics-dev.csv, test: data/topics.csv}
```

Exactly one of `python`, `command`, `mlflow` (`mlflow.models.evaluate`) and `genai`
(`mlflow.genai.evaluate`, with `scorers`) measures a task. Paths are relative to the file.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import evaluators
from mlflow_breadcrumbs.support import canonical, documents, scales, validation

PROGRAM = "cmd:"
FORMS = "module:function, 'cmd: PROGRAM … {model}', or a file FILE.yaml"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Exam:
    """One task, or all that an evaluator knows, and who measures it."""

    means: evaluators.Means
    digest: str
    """Of the evaluator."""
    task: str | None = None
    """`None`: the evaluator names its tasks itself."""
    scale: scales.Scale | None = None
    """What its values mean; `None`: the evaluator says."""
    counted: bool = False
    """Whether a value is the fraction of the examples that are right."""
    data: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """The file by split; empty where the evaluator has its data itself."""

    def file(self, split: str) -> Path | None:
        """The data of a split.

        Raises:
            EvaluatorError: there is none for that split.
        """
        if self.data and split not in self.data:
            raise errors.EvaluatorError(
                f"the evaluator of {self.task} has no data for the {split} split; it has "
                f"{', '.join(self.data)}. Give `data: {{{split}: FILE}}`"
            )
        return self.data.get(split)

    def check_splits(self) -> None:
        """Make sure that it can choose on other examples than it reports on.

        Raises:
            EvaluatorError: validation and test can't be told apart.
        """
        if self.data:
            if self.file("validation") == self.file("test"):
                raise errors.EvaluatorError(
                    f"the evaluator of {self.task} has the same data for validation and test, so "
                    "that a choice would be made on what it is reported on; give two files"
                )
        elif "split" not in self.means.takes:
            raise errors.EvaluatorError(
                f"the evaluator {self.means.description} does not tell validation from test, and "
                "this command chooses by the one and reports the other; let it take `split`, or "
                "give `data: {validation: FILE, test: FILE}` in a file of evaluators"
            )


@dataclasses.dataclass(frozen=True)
class UserEvaluator:
    """What a user named to measure models by."""

    description: str
    """As it was given."""
    exams: tuple[Exam, ...]
    """One per task, or one for all."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, where they are known before anything is measured."""
        return tuple(each.task for each in self.exams if each.task is not None)

    @property
    def digest(self) -> str:
        """Of all that is known of how it measures, but for the data."""
        return canonical.digest([[each.task or "", each.digest] for each in self.exams])


class MlflowSettings(pydantic.BaseModel):
    """`mlflow.models.evaluate`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    metric: str
    targets: str
    predictions: str | None = None
    model_type: str | None = None
    evaluator_config: dict[str, Any] = pydantic.Field(default_factory=dict)


class GenaiSettings(pydantic.BaseModel):
    """`mlflow.genai.evaluate`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    metric: str
    scorers: Annotated[list[str], pydantic.Field(min_length=1)]


class TaskEntry(pydantic.BaseModel):
    """One task of the file."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    python: str | None = None
    command: list[str] | str | None = None
    mlflow: MlflowSettings | None = None
    genai: GenaiSettings | None = None
    seconds: Annotated[float, pydantic.Field(gt=0)] = evaluators.SECONDS
    metric: str = "accuracy"
    greater_is_better: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    counted: bool | None = None
    data: str | dict[Split, str] | None = None

    @pydantic.model_validator(mode="after")
    def _is_measured_once(self) -> Self:
        if not scales.NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} is not of the form {scales.NAME.pattern}")
        means = (self.python, self.command, self.mlflow, self.genai)
        if sum(each is not None for each in means) != 1:
            raise ValueError("give exactly one of python, command, mlflow and genai")
        scale = self.scale()
        if self.counted and (scale.low, scale.high) != (0.0, 1.0):
            raise ValueError("what is counted is a fraction, with the range [0, 1]")
        return self

    def scale(self) -> scales.Scale:
        """What the values mean."""
        return scales.Scale(self.metric, self.greater_is_better, *self.range)


class EvaluatorFile(pydantic.BaseModel):
    """The whole file."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    tasks: Annotated[list[TaskEntry], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _names_each_once(self) -> Self:
        names = [each.name for each in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the task {twice[0]} is there twice")
        return self


def read(given: str) -> UserEvaluator:
    """What an evaluator's name on the command line means.

    Args:
        given: a function, a program or a file, see `FORMS`.

    Raises:
        EvaluatorError: it is none of these, or what it names is not there.
    """
    if given.startswith(PROGRAM):
        try:
            words = shlex.split(given.removeprefix(PROGRAM))
        except ValueError as error:
            raise errors.EvaluatorError(f"the evaluator {given!r} has no words: {error}") from error
        means: evaluators.Means = evaluators.program(words, Path.cwd())
        return UserEvaluator(given, (Exam(means, evaluators.digest(means)),))
    if _FUNCTION.fullmatch(given):
        means = evaluators.function(given, Path.cwd())
        return UserEvaluator(given, (Exam(means, evaluators.digest(means)),))
    if _URI.match(given):
        raise errors.EvaluatorError(
            f"the evaluator {given} is an address, and an evaluator is code that only you name: "
            f"give {FORMS}"
        )
    if given.endswith((".yaml", ".yml", ".json")):
        return _from_file(Path(given))
    raise errors.EvaluatorError(f"the evaluator {given!r} is unknown; give {FORMS}")


def _from_file(path: Path) -> UserEvaluator:
    """The evaluators of a file."""
    origin = f"the file of evaluators {path}"
    document = documents.read(path, origin, errors.EvaluatorError)
    if not isinstance(document.root, yaml.MappingNode):
        raise errors.EvaluatorError(f"{origin} is not a mapping with `tasks`")
    try:
        found = EvaluatorFile.model_validate(document.content)
    except pydantic.ValidationError as error:
        faults = validation.faults(error, EvaluatorFile, document.root, "the file")
        raise errors.EvaluatorError(f"{origin} is refused:\n  " + "\n  ".join(faults)) from error
    place = path.absolute().parent
    return UserEvaluator(str(path), tuple(_exam(entry, place) for entry in found.tasks))


def _exam(entry: TaskEntry, place: Path) -> Exam:
    means = _means(entry, place)
    scale = entry.scale()
    counted = scale.is_accuracy if entry.counted is None else entry.counted
    named = {"test": entry.data} if isinstance(entry.data, str) else dict(entry.data or {})
    data = {str(split): place / file for split, file in named.items()}
    for file in data.values():
        if not file.is_file():
            raise errors.EvaluatorError(
                f"the data file {file} of the task {entry.name} is not there"
            )
    if not data and entry.mlflow is None and entry.genai is None:
        return Exam(means, evaluators.digest(means), entry.name, scale, counted)
    if not data:
        raise errors.EvaluatorError(
            f"the task {entry.name} has no data, and MLflow's evaluation needs a file of examples; "
            "give `data`"
        )
    return Exam(means, evaluators.digest(means), entry.name, scale, counted, data)


def _means(entry: TaskEntry, place: Path) -> evaluators.Means:
    if entry.python is not None:
        if not _FUNCTION.fullmatch(entry.python):
            raise errors.EvaluatorError(
                f"the task {entry.name}: python is {entry.python!r}; give MODULE:FUNCTION"
            )
        return evaluators.function(entry.python, place)
    if entry.command is not None:
        command = entry.command
        words = shlex.split(command) if isinstance(command, str) else command
        return evaluators.program(words, place, entry.seconds)
    from mlflow_breadcrumbs.evaluation import mlflow_means  # pandas and MLflow, for these alone

    if entry.mlflow is not None:
        fields = entry.mlflow
        return mlflow_means.Evaluate(
            fields.metric,
            fields.targets,
            fields.model_type,
            fields.predictions,
            fields.evaluator_config,
        )
    if entry.genai is not None:
        scorers = tuple(evaluators.imported(each, place) for each in entry.genai.scorers)
        return mlflow_means.GenaiEvaluate(entry.genai.metric, scorers)
    raise AssertionError("the file was validated")
