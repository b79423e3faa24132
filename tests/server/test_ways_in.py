"""MLflow's other ways to a pinned alias: prompts, workspaces, made-up history."""

import ledgers
import mlflow
import pytest
from mlflow.entities import Workspace
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry import abstract_store, sqlalchemy_workspace_store
from mlflow.store.workspace import sqlalchemy_store
from mlflow.store.workspace.abstract_store import WorkspaceDeletionMode
from mlflow.utils import workspace_context

from mlflow_breadcrumbs.promotion import policies, predecessors
from mlflow_breadcrumbs.server import guard, pinning

GUARDED = {
    "rename_registered_model",
    "delete_registered_model",
    "delete_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
}
THROUGH_THESE = {
    "delete_prompt",
    "delete_prompt_version",
    "set_prompt_alias",
    "delete_prompt_alias",
    "set_prompt_version_tag",
    "delete_prompt_version_tag",
}
MOVES_NOTHING = {
    # New models and versions, which have no alias yet.
    "create_registered_model",
    "create_model_version",
    "copy_model_version",
    "create_prompt",
    "create_prompt_version",
    # Descriptions, stages, tags of models, links from runs, traces and logged models.
    "update_registered_model",
    "update_model_version",
    "transition_model_version_stage",
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_prompt_tag",
    "delete_prompt_tag",
    "link_prompts_to_trace",
    "link_prompt_version_to_model",
    "link_prompt_version_to_run",
    "create_webhook",
    "update_webhook",
    "delete_webhook",
    "test_webhook",
}
READING = ("get_", "search_", "list_", "supports_")


def test_every_method_of_mlflows_store_is_known():
    """A release of MLflow with another way to move an alias is noticed here."""
    found = {name for name in vars(abstract_store.AbstractStore) if not name.startswith("_")}
    found = {name for name in found if not name.startswith(READING)}
    assert found == GUARDED | THROUGH_THESE | MOVES_NOTHING
    assert {name for name in vars(guard.Guard) if name in found} == GUARDED


def test_nothing_is_gone_back_to_by_tags(guarded, second):
    """Who may edit a model can tag a version as promoted, or tell of a move that never was."""
    client = mlflow.MlflowClient(guarded.uri, guarded.uri)
    uri = f"models:/merged/{second}"
    moved = {"alias": "approved", "before": None, "after": second, "because": "promote"}
    client.set_model_version_tag("merged", second, *ledgers.letter(uri, "alias", **moved))
    for alias in ("pinned", "approved"):
        far = "2999-01-01T00:00:00.000+00:00 run"
        client.set_model_version_tag("merged", second, predecessors.tag(alias), far)
        asked = {"name": "merged", "alias": alias}
        before = client.get_registered_model("merged").aliases.get(alias)
        back = guarded.request("rollback", asked)
        assert (back.status, back.json["moved"]) == (200, False), back.text
        named = guarded.request("rollback", asked | {"to": second})
        assert (named.status, f"never was {alias}" in named.json["error"]) == (400, True)
        assert client.get_registered_model("merged").aliases.get(alias) == before


@pytest.fixture
def workspaces(store, monkeypatch):
    """A workspace with a model that has a pinned alias; the registry, and the store of them."""
    monkeypatch.setenv(MLFLOW_ENABLE_WORKSPACES.name, "true")
    registry = sqlalchemy_workspace_store.WorkspaceAwareSqlAlchemyStore(store)
    spaces = sqlalchemy_store.SqlAlchemyStore(store)
    spaces.create_workspace(Workspace("team"))
    spaces.create_workspace(Workspace("empty"))
    with workspace_context.ServerWorkspaceContext("team"):
        registry.create_registered_model("clip")
        registry.create_model_version("clip", "nowhere")
        registry.set_registered_model_alias("clip", "champion", "1")
    pin = pinning.Pin("clip@champion", policies.parse("approvals: 1"))
    guard.Guard(registry, pinning.Pins((pin,)), spaces).stand()
    return registry, spaces


def test_a_pinned_alias_is_no_prompts(workspaces):
    registry, _ = workspaces
    with workspace_context.ServerWorkspaceContext("team"):
        for act in (
            lambda: registry.set_prompt_alias("clip", "champion", "1"),
            lambda: registry.delete_prompt_alias("clip", "champion"),
            lambda: registry.delete_prompt_version("clip", "1"),
            lambda: registry.delete_prompt("clip"),
        ):
            with pytest.raises(MlflowException, match="clip@champion is guarded"):
                act()
        assert registry.get_model_version_by_alias("clip", "champion").version == 1


@pytest.mark.parametrize("mode", list(WorkspaceDeletionMode))
def test_no_workspace_takes_a_pinned_alias_along(workspaces, mode):
    registry, spaces = workspaces
    with pytest.raises(MlflowException, match="'team' can't be deleted: clip@champion is guarded"):
        spaces.delete_workspace("team", mode=mode)
    spaces.delete_workspace("empty", mode=mode)
    with workspace_context.ServerWorkspaceContext("team"):
        assert registry.get_model_version_by_alias("clip", "champion").version == 1


def test_what_is_pinned_in_one_workspace_is_free_in_none(workspaces):
    registry, _ = workspaces
    for name in ("team", "empty"):
        with workspace_context.ServerWorkspaceContext(name):
            if name == "empty":
                registry.create_registered_model("clip")
                registry.create_model_version("clip", "nowhere")
            with pytest.raises(MlflowException, match="clip@champion is guarded"):
                registry.set_registered_model_alias("clip", "champion", "1")
    with workspace_context.ServerWorkspaceContext("empty"):
        registry.delete_model_version("clip", "1")  # the other workspace's has the alias
        registry.delete_registered_model("clip")
    with (
        workspace_context.ServerWorkspaceContext("team"),
        pytest.raises(MlflowException, match="version 1 of 'clip' can't be deleted"),
    ):
        registry.delete_model_version("clip", "1")
