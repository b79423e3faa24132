"""Many merges of the same sources, measured by the user's own evaluator.

Each merge is laid out as the MLflow model that it would become, handed to the evaluator, and
removed. The base and the sources are measured once per split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluator_files, grading, scorecard, scores
from mlflow_breadcrumbs.pipeline import examining, heading, inputs
from mlflow_breadcrumbs.support import canonical

PLAIN = recipe.MergeRecipe(density=1.0)
"""A recipe without patterns."""


class Grades:
    """What an evaluator says of merges, and of what they are compared with.

    Args:
        evaluator: what the user named.
        taken: the base and the sources, open.
        folder: for merges, one after the other.
    """

    def __init__(
        self, evaluator: evaluator_files.UserEvaluator, taken: inputs.Inputs, folder: Path
    ) -> None:
        self._evaluator, self._taken, self._folder = evaluator, taken, folder
        self._graders: dict[str, grading.Grader] = {}
        self._before: dict[str, dict[str, scorecard.TaskScore]] = {}
        self._owners: dict[str, int] = {}
        self._with_heads: dict[tuple[tuple[str, ...], ...], inputs.Inputs] = {}

    def check_splits(self) -> None:
        """Make sure that what is chosen by is not what is reported; see `Exam.check_splits`."""
        for exam in self._evaluator.exams:
            exam.check_splits()

    def digest(self, split: str) -> str:
        """What the numbers depend on, besides the recipes: weights, evaluator and data."""
        grader = self._grader(split)
        return canonical.digest(
            {
                "weights": list(self._taken.digests),
                "evaluator": self._evaluator.digest,
                "data": {task: list(grader.basis(task) or ()) for task in self._evaluator.tasks},
            }
        )

    def before(self, split: str) -> Mapping[str, scorecard.TaskScore]:
        """The base and each task's own source; a task's source is the same in every split."""
        if split not in self._before:
            grader = self._grader(split)
            found = examining.measure_before(grader, self._headed(), self._owners)
            labels = [source.resolved.uri for source in self._taken.sources]
            self._owners = {task: labels.index(score.source) for task, score in found.items()}
            self._before[split] = found
        return self._before[split]

    def owner(self, task: str, split: str) -> int:
        """The position of a task's own source.

        Raises:
            EvaluatorError: the evaluator has no such task.
        """
        self.before(split)
        if task not in self._owners:
            raise errors.EvaluatorError(
                f"the evaluator {self._evaluator.description} has no task {task!r}; it has "
                f"{', '.join(self._owners)}"
            )
        return self._owners[task]

    def examine(
        self,
        tensors: Mapping[str, torch.Tensor],
        names: Sequence[str],
        split: str,
        settings: recipe.MergeRecipe = PLAIN,
    ) -> Mapping[str, scores.Grade]:
        """What the evaluator says of a model with these tensors; its heads are by a recipe's own.

        Raises:
            MergeError: the heads are for no task, or two for one.
        """
        self._folder.mkdir(exist_ok=True)
        file = self._folder / "merged.safetensors"
        flavor.write_weights(tensors, file)
        with examining.laid_out(self._headed(settings), file) as subject:
            return self._grader(split).examine(subject, names)

    def score(
        self,
        tensors: Mapping[str, torch.Tensor],
        members: Sequence[int],
        split: str,
        settings: recipe.MergeRecipe = PLAIN,
    ) -> scorecard.Scorecard:
        """A merge of some of the sources on their tasks.

        Raises:
            EvaluatorError: the evaluator fails, or the sources have no task.
        """
        before = self.before(split)
        names = [name for name in before if self._owners[name] in members]
        if not names:
            raise errors.EvaluatorError(
                f"no task of the evaluator {self._evaluator.description} is one of these sources'; "
                "leave those out that have none, or set the tag breadcrumbs.task on their versions"
            )
        return grading.card(before, self.examine(tensors, names, split, settings))

    def _headed(self, settings: recipe.MergeRecipe = PLAIN) -> inputs.Inputs:
        """The base and the sources, with the heads that these keep by a recipe's patterns."""
        patterns = (settings.include, settings.exclude, settings.own)
        if patterns not in self._with_heads:
            place = self._folder.with_name(f"{self._folder.name}-{len(self._with_heads)}")
            self._with_heads[patterns] = heading.with_heads(self._taken, settings, place)
        return self._with_heads[patterns]

    def _grader(self, split: str) -> grading.Grader:
        if split not in self._graders:
            self._graders[split] = grading.Grader(self._evaluator, split)
        return self._graders[split]
