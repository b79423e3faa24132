"""MLflow's own evaluation as an evaluator: `mlflow.models.evaluate`, `mlflow.genai.evaluate`.

What MLflow logs while it evaluates goes into a run of its own, so that the run of a merge has the
numbers of the merge alone.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import evaluators
from mlflow_breadcrumbs.registry import runs, tag_keys
from mlflow_breadcrumbs.support import canonical

ANSWER = "breadcrumbs_answer"
"""The column of the model's answers in the table that MLflow evaluates."""
KIND = "evaluator"
"""The tag of the runs that MLflow's evaluation logs to."""
READERS: Mapping[str, Callable[[Path], pandas.DataFrame]] = {
    ".csv": pandas.read_csv,
    ".tsv": lambda path: pandas.read_csv(path, sep="\t"),
    ".parquet": pandas.read_parquet,
    ".json": pandas.read_json,
    ".jsonl": lambda path: pandas.read_json(path, lines=True),
}
"""By the suffix of a data file."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """`mlflow.models.evaluate` on a table of examples."""

    metric: str
    """Of what MLflow computes, as `f1_score`."""
    targets: str
    """The column with the right answers."""
    model_type: str | None = None
    """As `classifier`, `regressor`, `text`."""
    predictions: str | None = None
    """The column of the model's output that is the answer, where it has several."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """MLflow's `evaluator_config`."""

    @property
    def description(self) -> str:
        """All of it, as JSON, and MLflow's version."""
        fields = {**dataclasses.asdict(self), "settings": dict(self.settings)}
        return f"mlflow.models.evaluate {canonical.dumps(fields).decode()}, {mlflow.__version__}"

    @property
    def takes(self) -> frozenset[str]:
        """The model and the examples."""
        return frozenset({"model", "data"})

    def files(self) -> Mapping[str, bytes]:
        """None: it is MLflow's."""
        return {}

    def result(self, asked: evaluators.Asked) -> Any:
        """The metric, and the number of examples."""
        frame = read_table(asked.data)
        if self.targets not in frame:
            raise errors.EvaluatorError(
                f"{asked.data} has no column {self.targets!r} for the task {asked.task}; it has "
                f"{', '.join(map(str, frame.columns))}"
            )
        with _run_of_its_own(asked), _explained("mlflow.models.evaluate", asked):
            examples = frame.drop(columns=[self.targets])
            answers = mlflow.pyfunc.load_model(str(asked.model)).predict(examples)
            found = mlflow.models.evaluate(
                data=frame.assign(**{ANSWER: self._column(answers, asked)}),
                targets=self.targets,
                predictions=ANSWER,
                model_type=self.model_type,
                evaluators="default",
                evaluator_config=dict(self.settings),
            ).metrics
        return _picked(found, self.metric, len(frame), asked)

    def _column(self, answers: Any, asked: evaluators.Asked) -> list[Any]:
        """The answers of a model, one per example."""
        if isinstance(answers, pandas.DataFrame):
            named = self.predictions or (answers.columns[0] if len(answers.columns) == 1 else None)
            if named not in answers:
                raise errors.EvaluatorError(
                    f"the model of the task {asked.task} gives "
                    f"{', '.join(map(str, answers.columns))}; name one of them as `predictions`"
                )
            answers = answers[named]
        return list(answers)


@dataclasses.dataclass(frozen=True)
class GenaiEvaluate:
    """`mlflow.genai.evaluate` with scorers of the user's, on the outputs of the model."""

    metric: str
    """Of what MLflow computes, as `exact/mean`."""
    scorers: tuple[evaluators.Function, ...]
    """Functions that MLflow takes as scorers, or makes scorers of."""

    @property
    def description(self) -> str:
        """The scorers, and MLflow's version."""
        named = ", ".join(each.description for each in self.scorers)
        return f"mlflow.genai.evaluate {self.metric} by {named}, {mlflow.__version__}"

    @property
    def takes(self) -> frozenset[str]:
        """The model and the examples."""
        return frozenset({"model", "data"})

    def files(self) -> Mapping[str, bytes]:
        """The scorers' modules."""
        return {name: content for each in self.scorers for name, content in each.files().items()}

    def result(self, asked: evaluators.Asked) -> Any:
        """The metric, and the number of examples."""
        rows = read_table(asked.data).to_dict("records")
        if not all("inputs" in row for row in rows):
            raise errors.EvaluatorError(
                f"{asked.data} has rows without `inputs` for the task {asked.task}; MLflow's "
                "scorers take a JSON file of rows with inputs and expectations"
            )
        with _run_of_its_own(asked), _explained("mlflow.genai.evaluate", asked):
            model = mlflow.pyfunc.load_model(str(asked.model))
            asked_rows = [
                {**row, "outputs": _plain(model.predict(pandas.DataFrame([row["inputs"]])))}
                for row in rows
            ]
            found = mlflow.genai.evaluate(data=asked_rows, scorers=_scorers(self.scorers)).metrics
        return _picked(found, self.metric, len(rows), asked)


def _scorers(named: Sequence[evaluators.Function]) -> list[Any]:
    from mlflow.genai.scorers import Scorer, scorer

    return [each.call if isinstance(each.call, Scorer) else scorer(each.call) for each in named]


def _plain(output: Any) -> Any:
    """What a model gives for one row, as JSON has it."""
    if isinstance(output, pandas.DataFrame):
        output = output.to_dict("records")
    elif hasattr(output, "tolist"):
        output = output.tolist()
    return output[0] if isinstance(output, list) and len(output) == 1 else output


def read_table(path: Path | None) -> pandas.DataFrame:
    """The examples of a data file.

    Raises:
        EvaluatorError: there is none, or it can't be read.
    """
    if path is None or path.suffix not in READERS:
        named = "no data file" if path is None else f"the data file {path}"
        raise errors.EvaluatorError(
            f"MLflow's evaluation has {named}; give `data`, a file of {', '.join(READERS)}"
        )
    try:
        found: pandas.DataFrame = READERS[path.suffix](path)
    except (ValueError, OSError, ImportError) as error:
        raise errors.EvaluatorError(f"the data file {path} can't be read: {error}") from error
    if found.empty:
        raise errors.EvaluatorError(f"the data file {path} has no examples")
    return found


def _picked(
    found: Mapping[str, float], metric: str, examples: int, asked: evaluators.Asked
) -> dict[str, float]:
    if metric not in found:
        raise errors.EvaluatorError(
            f"MLflow's evaluation of the task {asked.task} gives no {metric!r}; it gives "
            f"{', '.join(sorted(found)) or 'nothing'}"
        )
    return {"value": float(found[metric]), "n": examples}


@contextlib.contextmanager
def _run_of_its_own(asked: evaluators.Asked) -> Iterator[None]:
    """A run for what MLflow logs, in no other's shade; the active one comes back after it."""
    marks = {tag_keys.KIND: KIND}
    made = mlflow.MlflowClient().create_run(
        runs.experiment_id(), run_name=f"mlflow evaluation of {asked.task}", tags=marks
    )
    with (
        contextlib.redirect_stdout(sys.stderr),
        mlflow.start_run(run_id=made.info.run_id, nested=True),
    ):
        yield


@contextlib.contextmanager
def _explained(what: str, asked: evaluators.Asked) -> Iterator[None]:
    """The model, or a scorer, is the user's and may raise anything."""
    try:
        yield
    except errors.BreadcrumbsError:
        raise
    except Exception as error:  # of the model, or of the user's code
        text = error.message if isinstance(error, MlflowException) else str(error)
        raise errors.EvaluatorError(
            f"{what} failed for the task {asked.task}: {type(error).__name__}: "
            f"{' '.join(text.split())[:500]}"
        ) from error
