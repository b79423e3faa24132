"""What a user asks the main flow for."""

import dataclasses
from collections.abc import Sequence

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.evaluation import evaluator_files
from mlflow_breadcrumbs.lineage import ancestry_tags
from mlflow_breadcrumbs.models.tasks import Split, Task
from mlflow_breadcrumbs.pipeline import changing, inputs
from mlflow_breadcrumbs.support import canonical, defaults


@dataclasses.dataclass(frozen=True)
class MergeRequest:
    """What a user asks for."""

    base: str
    """Registry URI of the version that every source was fine-tuned from."""
    sources: tuple[str, ...]
    """Registry URIs, in the order of the sum."""
    registered_model: str
    recipe: recipe.MergeRecipe
    left_open: frozenset[str] = frozenset()
    """What of the recipe is found from the weights first, see `drafts`."""
    patterns: tuple[str, ...] = ()
    """Patterns that were named for this merge, each of which must match a tensor; those of a recipe
    that do not are only said."""
    choice: drafts.Choice | None = None
    """How the recipe came about, where it was not given."""
    tasks: str | None = None
    """A task file, or an artifact URI of one; without it nothing is evaluated."""
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means of measuring, in place of a task file."""
    split: Split = "test"
    device: str = "auto"
    """Where models run for the evaluation: `auto`, `cpu`, `cuda` or `cuda:N`."""
    batch_size: int = defaults.BATCH_SIZE
    cache: bool = True
    """Take accuracies that were measured before from the user's cache."""
    backend: str = "auto"
    """What computes the merge: a name of `choosing.NAMES`."""
    max_shard_size: int | None = None
    """Bytes of tensors in one file of the version at most; as the base's files when `None`."""
    work_folder: str | None = None
    """Where the merge is kept until it is registered, so that a call after a killed one goes on."""
    threads: int | None = None
    """Of the CPU backend; all processors when `None`."""
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO
    """Refuse a source whose task vector is longer than so many times the base."""
    alias: str | None = None
    force: bool = False
    """Make a new version even if this merge exists already."""
    force_alias: bool = False
    """Point the alias at a merge that exists already, even if it goes back by that."""
    method: str | None = None
    """By which the recipe was filled in, for the lineage."""
    keep_parts: bool = False
    """Keep what each source contributes in the run, for the next change."""
    adapter_rank: int | None = None
    """Keep the merged change as one LoRA adapter of this rank in the run, too."""
    change: changing.MergeChange | None = None
    """The merge that base, sources and recipe come from, with what was added and taken out."""

    @property
    def draft(self) -> drafts.RecipeDraft:
        """The recipe, with what is open."""
        return drafts.RecipeDraft(self.recipe, self.left_open, self.patterns)

    @property
    def named(self) -> dict[str, str | None]:
        """What the run has as parameters beside the recipe and the versions, as `mlflow run`."""
        fields = ("registered_model", "tasks", "alias")
        return {field: getattr(self, field) for field in fields}


def digest(request: MergeRequest, taken: inputs.Inputs, pairs: Sequence[tuple[int, Task]]) -> str:
    """What makes two calls the same: the merge, where it goes, and what is measured.

    An input without a digest is told by its identity, so that nothing is read for this.
    """
    return canonical.digest(
        {
            "merge": ancestry_tags.merge_digest(request.recipe, taken.identities),
            "registeredModel": request.registered_model,
            # A head that is found later is kept by the name of its task.
            **({} if taken.is_ours else {"purposes": inputs.purposes(taken.resolved)}),
            "force": request.force,
            **({"parts": True} if request.keep_parts else {}),
            **({"adapter": request.adapter_rank} if request.adapter_rank is not None else {}),
            "split": request.split,
            "tasks": request.tasks,
            **({"evaluator": request.evaluator.digest} if request.evaluator else {}),
            "measured": [
                [task.name, list(task.classes), list(task.templates), task.limit]
                for _, task in pairs
            ],
        }
    )
