"""The merges of a study as independent pieces of work, which others than this process may do.

```python
hands = pieces.Hands(bench, executor)
for number, answer in hands.answers(questions, advance):
    ...  # as they come
```

Workers elsewhere get what the study has found so far: the decoded images, the masks, the accuracies
of the base and of the sources. That goes to them once, and once more when a look at other recipes
needs further masks. They open the checkpoints, the images that are not kept decoded, and a GPU by
the names that this process has for them. Matrices that are decomposed for one scale and serve the
next are not shared: each worker keeps its own, up to `workbench.KEPT_UPDATES`, since they come
about while a worker merges, and are as large as the model for each recipe that differs in more.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import adapters, recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import executors, progress


@dataclasses.dataclass(frozen=True)
class Question:
    """How good is this merge? The fields are the arguments of `Study.measure`."""

    settings: recipe.MergeRecipe
    members: tuple[int, ...] | None = None
    split: tasks.Split = "validation"
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a merge came to."""

    weights_digest: str
    metrics: Mapping[str, float]
    """As a scorecard gives them."""


@dataclasses.dataclass(frozen=True)
class StudyWork:
    """What the merges of a study share; a piece is a `Question`."""

    materials: workbench.Materials
    device: str
    taken: inputs.Inputs
    pairs: tuple[tuple[int, tasks.Task], ...]
    known: workbench.Findings
    study: workbench.Study | None = None
    """Where this process has it open; a worker elsewhere opens it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave what is open behind."""
        return StudyWork, (self.materials, self.device, self.taken, self._named(), self.known)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Callable[[Question, progress.Advance], Answer]]:
        """What answers a question."""
        with contextlib.ExitStack() as stack:
            study = self.study or self._opened(stack)
            chosen = range(len(study.labels))

            def answer(question: Question, advance: progress.Advance) -> Answer:
                members = chosen if question.members is None else question.members
                merged = study.merge(question.settings, question.members)
                split, limit = question.split, question.limit
                card = study.score(merged, members, split=split, limit=limit)
                advance(1)
                return Answer(merged.weights_digest, card.metrics())

            yield answer

    def _opened(self, stack: contextlib.ExitStack) -> workbench.Study:
        files = adapters.open_all(stack, (version.weights for version in self.taken.everything))
        return workbench.Study(
            *(self.materials, self.device, self.taken, self.pairs, files),
            progress.silent,
            self.known,
        )

    def _named(self) -> tuple[tuple[int, tasks.Task], ...]:
        """The tasks without what opens their images, which `known` has already."""
        return tuple((number, dataclasses.replace(task, load=None)) for number, task in self.pairs)


class Hands:
    """Those who answer the questions of a study.

    Args:
        study: open here.
        executor: does the pieces.

    Raises:
        EvaluatorError: a user's evaluator measures, which workers elsewhere can't have.
    """

    def __init__(self, study: workbench.Study, executor: executors.Executor) -> None:
        if study.grades is not None and executor is not executors.LOCAL:
            raise errors.EvaluatorError(
                "an evaluator of your own measures in this process, one model after the other; "
                "leave --executor out"
            )
        self._study, self._executor = study, executor
        self._work: StudyWork | None = None
        self._found = 0
        """How much the study had found when the work was made; then the work holds all of it."""

    def answers(
        self, questions: Sequence[Question], advance: progress.Advance
    ) -> Iterator[tuple[int, Answer]]:
        """The answers as they come, each with its question's position; masks must be prepared.

        Raises:
            BreadcrumbsError: see `Study.measure` and `executors.Executor.run`.
        """
        if not questions:
            return
        study = self._study
        if self._executor is not executors.LOCAL:
            self._look_ahead(questions)
        if self._work is None or self._found != len(study.known):
            self._found = len(study.known)
            self._work = StudyWork(
                *(study.materials, study.device, study.taken, study.pairs, study.known), study
            )
        amounts = [1.0] * len(questions)
        yield from self._executor.run(self._work, questions, advance=advance, amounts=amounts)

    def _look_ahead(self, questions: Sequence[Question]) -> None:
        """Find here, once, what every worker would find for itself."""
        everyone = range(len(self._study.labels))
        for split in dict.fromkeys(question.split for question in questions):
            asked = [
                everyone if question.members is None else question.members
                for question in questions
                if question.split == split
            ]
            members = sorted({member for own in asked for member in own})
            self._study.before(self._study.tasks_of(members), split)
