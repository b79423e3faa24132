"""What a merge is before anything is computed: checked, settled, planned, its cost known."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.engine import backends, drafts, lowering, parts
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.shards import budgets, plans
from mlflow_breadcrumbs.pipeline import computing, inputs, merge_request
from mlflow_breadcrumbs.pipeline.merge_request import MergeRequest
from mlflow_breadcrumbs.registry import aliases, permissions, versions
from mlflow_breadcrumbs.support import devices, progress


def settled(
    request: MergeRequest,
    taken: inputs.Inputs,
    draft: drafts.RecipeDraft,
    backend: backends.Backend,
    show: progress.Progress,
) -> MergeRequest:
    """The request with nothing left open."""
    choice = computing.settle(taken, draft, backend, show)
    if choice is None:
        return request
    return dataclasses.replace(
        request,
        recipe=choice.recipe,
        left_open=frozenset(),
        choice=choice,
        method=choice.method or request.method,
    )


def check(request: MergeRequest) -> tuple[str, backends.Backend]:
    """Hold the request against all that is known without the registry; device and backend."""
    check_target(request.registered_model, request.alias)
    computing.check_work_folder(request.work_folder)
    request.recipe.weight_of(len(request.sources))
    if request.tasks is not None and request.evaluator is not None:
        raise errors.TaskError(
            f"both the task file {request.tasks} and the evaluator "
            f"{request.evaluator.description} are given; a merge is measured by one of them"
        )
    if request.keep_parts and drafts.METHOD in request.left_open:
        raise errors.MergeError(
            "--keep-parts is of no use for the method auto, which takes methods that need whole "
            f"sources; name one that masks them, as --method breadcrumbs. {parts.REMEDY}"
        )
    if request.keep_parts:
        parts.check_recipe(request.recipe)
    lowering.check_rank(request.adapter_rank)
    ledger.check()
    permissions.check(request.registered_model)
    backend = choosing.choose(request.device, request.backend, threads=request.threads)
    return devices.choose_device(request.device), backend


def check_target(name: str, alias: str | None) -> None:
    """Raise `RegistryError` unless a version can get this name and alias."""
    versions.check_name(name)
    if alias is not None:
        aliases.check_alias(alias)


def plan(
    request: MergeRequest, show: progress.Progress = progress.silent
) -> tuple[Path, plans.ShardPlan]:
    """Plan a merge that workers then do shard by shard; `merge` with the same request ends it.

    Returns:
        The plan's file, in the request's work folder, and the plan.

    Raises:
        BreadcrumbsError: one of its kinds; nothing was planned.
    """
    with _settled_inputs(request, show) as (taken, request, folder):
        pairs = inputs.plan_evaluation(taken, request.tasks) if request.tasks is not None else ()
        asked = merge_request.digest(request, taken, pairs)
        work = computing.work_folder(request.work_folder, asked, otherwise=folder)
        return computing.plan(taken, request, work)


def budget(request: MergeRequest, show: progress.Progress = progress.silent) -> budgets.Budget:
    """What a merge would take; nothing is registered, or written but to a temporary folder.

    Raises:
        BreadcrumbsError: one of its kinds: what the merge would be refused for.
    """
    with _settled_inputs(request, show) as (taken, request, _):
        backend = choosing.choose(request.device, request.backend, threads=request.threads)
        return computing.budget(taken, request, backend)


@contextlib.contextmanager
def _settled_inputs(
    request: MergeRequest, show: progress.Progress
) -> Iterator[tuple[inputs.Inputs, MergeRequest, Path]]:
    """The versions, where they are; the request with nothing left open; a temporary folder."""
    _, backend = check(request)
    resolved = inputs.resolve(request.base, request.sources)
    with versions.workspace() as folder:
        taken = inputs.open_all(resolved, folder, lazily=True)
        draft = request.draft
        yield taken, settled(request, taken, draft, backend, show), folder
