"""The index of the ledger: what a sync finds, and that it is the registry's own graph."""

import time

import mlflow
import pytest
import registered
import sqlalchemy as sql

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import index, migrations, schema, stores
from mlflow_breadcrumbs.registry import catalog, tag_keys


def counts(synced):
    return (synced.added, synced.changed, synced.removed)


@pytest.fixture
def versions(store, ledger_uri):
    return registered.chain(5)


def test_the_index_is_the_registrys_own_graph(versions):
    assert counts(ledger.sync()) == (7, 0, 0)
    known = catalog.everything()
    for uri in versions:
        assert ledger.ancestry(uri) == known.ancestors(uri) == catalog.ancestry(uri)
        assert ledger.descendants(uri) == known.descendants(uri)
    assert len(ledger.descendants(versions[0]).versions) == 7


def test_a_second_sync_changes_nothing_and_a_later_one_finds_what_is_new(versions):
    ledger.sync()
    assert counts(ledger.sync()) == (0, 0, 0)
    registered.version("later", base=versions[0], sources=versions[1:3])
    assert counts(ledger.sync()) == (1, 0, 0)


def test_an_incremental_sync_reads_only_what_is_new(versions, monkeypatch):
    ledger.sync()
    monkeypatch.setattr(index, "OVERLAP", -1)  # not even the newest one known
    assert ledger.sync().read == 0
    time.sleep(0.005)
    registered.version("later")
    assert ledger.sync().read == 1


def test_only_a_full_sync_finds_deleted_versions_and_changed_tags(versions, monkeypatch):
    ledger.sync()
    client = mlflow.MlflowClient()
    client.delete_model_version("merged", "5")
    client.set_model_version_tag("merged", "4", tag_keys.SOURCES, f'["{versions[1]}"]')
    monkeypatch.setattr(index, "OVERLAP", -1)
    assert counts(ledger.sync()) == (0, 0, 0)
    assert counts(ledger.sync(full=True)) == (0, 1, 1)
    assert versions[-1] not in ledger.descendants(versions[0]).versions
    assert [edge.parent for edge in ledger.ancestry(versions[-2]).parents(versions[-2])] == [
        versions[0],
        versions[1],
    ]


def test_a_ledger_that_was_deleted_is_rebuilt_with_the_same_answers(versions):
    ledger.sync()
    before = [(ledger.ancestry(uri), ledger.descendants(uri)) for uri in versions]
    with stores.opened() as opened, opened.writing() as connection:
        schema.Base.metadata.drop_all(connection)
        sql.Table(migrations.VERSION_TABLE, sql.MetaData()).drop(connection)
    assert counts(ledger.sync()) == (7, 0, 0)
    assert [(ledger.ancestry(uri), ledger.descendants(uri)) for uri in versions] == before


def test_a_cycle_in_the_tags_ends(store, ledger_uri):
    one = registered.version("one", sources=("models:/two/1",))
    two = registered.version("two", sources=(one,))
    ledger.sync()
    assert set(ledger.ancestry(one).versions) == set(ledger.descendants(one).versions) == {one, two}
    assert catalog.ancestry(one) == ledger.ancestry(one)


def test_a_damaged_tag_falls_back_to_the_tag_of_each_source(store, ledger_uri, caplog):
    tags = {tag_keys.of_source("sha256:a"): "models:/a/1"}
    uri = registered.version("one", sources=("models:/a/1",), **tags)
    mlflow.MlflowClient().set_model_version_tag("one", "1", tag_keys.SOURCES, "[nonsense")
    ledger.sync()
    assert [edge.parent for edge in ledger.ancestry(uri).parents(uri)] == ["models:/a/1"]
    assert "models:/one/1: the tag breadcrumbs.sources is damaged" in caplog.text


def test_names_with_quotes_spaces_and_percent_signs(store, ledger_uri):
    names = ['a "b"', "100 %", "café ☕", "m-1"]
    uris = [registered.version(name) for name in names]
    top = registered.version("top", sources=uris)
    ledger.sync()
    assert set(ledger.ancestry(top).versions) == {top, *uris}
    assert catalog.ancestry(top) == ledger.ancestry(top)
