"""Thirty versions over a real tracking server: one truth in MLflow and in both kinds of ledger."""

import mlflow
import postgres
import pytest
import sqlalchemy as sql
import zoos

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.ledger import migrations, schema, stores
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import catalog

NAME = "thirty"


def merge(zoo, sources, alpha):
    return flow.merge(
        flow.MergeRequest(
            base=zoo.base,
            sources=tuple(sources),
            registered_model=NAME,
            recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=len(sources), alpha=alpha),
            device="cpu",
        )
    ).version.uri


@pytest.fixture
def ledgers(postgres_server, tmp_path):
    """Two empty ledgers, in both kinds of database."""
    return (f"sqlite:///{tmp_path}/ledger.db", postgres.schema(postgres_server, "ledger_of_thirty"))


@pytest.fixture
def thirty(server, light, ledgers, tmp_path, monkeypatch):
    """A base, three imports, and 26 merges, from the fourth on of merges, on a server.

    The jobs take turns with the ledgers, so that both have a history.
    """
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    zoos.use(server)
    mlflow.set_experiment("thirty")
    with ledger.using(ledgers[0]):
        zoo = zoos.fill(tmp_path, server)
    made, parents = list(zoo.sources), {}
    for number in range(26):
        # Always the newest version and one or two that are older, so that diamonds come about.
        sources = sorted({made[-1], made[number % 3], made[len(made) // 2]}, key=made.index)
        with ledger.using(ledgers[number % 2]):
            made.append(merge(zoo, sources, 0.3 + number / 1000))
        parents[made[-1]] = [zoo.base, *sources]
    yield zoo, made, parents
    zoos.use(previous)


def expected_ancestors(uri, parents):
    found, waiting = {uri}, [uri]
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def check(everything, ancestors):
    """The ledger in use says what was merged, and what MLflow says."""
    known = catalog.everything()
    for uri in everything:
        assert set(ledger.ancestry(uri).versions) == ancestors[uri]
        assert ledger.ancestry(uri) == known.ancestors(uri)
        descendants = {other for other in everything if uri in ancestors[other]}
        assert set(ledger.descendants(uri).versions) == descendants
        assert ledger.descendants(uri) == known.descendants(uri)
    top, source = everything[-1], everything[1]
    assert relatives.tree(top) == relatives.tree(top, "ledger")
    assert relatives.impact(source) == relatives.impact(source, "ledger")


@pytest.mark.slow
def test_thirty_versions_are_right_in_mlflow_and_in_both_ledgers_and_after_a_rebuild(
    thirty, ledgers
):
    zoo, made, parents = thirty
    everything = [zoo.base, *made]
    assert len(everything) == 30
    ancestors = {uri: expected_ancestors(uri, parents) for uri in everything}
    for uri in ledgers:
        with ledger.using(uri):
            ledger.sync()
            check(everything, ancestors)
            assert [event.phase for event in ledger.history(NAME)] == ["intent", "done"] * 13
            assert ledger.verify().holds
            with stores.opened() as opened, opened.writing() as connection:
                schema.Base.metadata.drop_all(connection)
                sql.Table(migrations.VERSION_TABLE, sql.MetaData()).drop(connection)
            ledger.sync()
            check(everything, ancestors)
            # The index comes back, and of the history what is in tags; a shared one uses none.
            left = ["done"] * 13 if uri.startswith("sqlite") else []
            assert [event.phase for event in ledger.history(NAME)] == left
