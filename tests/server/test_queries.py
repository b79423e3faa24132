"""How often the database is asked does not grow with the registry."""

import uuid

import flask
import mlflow
import postgres
import pytest
import registered
import sqlalchemy
import zoos
from mlflow.server import BACKEND_STORE_URI_ENV_VAR

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.server import app, visibility

PATHS = (
    "/breadcrumbs/",
    "/breadcrumbs/models/wide",
    "/breadcrumbs/models/wide/aliases",
    "/breadcrumbs/models/wide/versions/1",
    "/breadcrumbs/models/tuned/versions/1/lineage",
)


@pytest.fixture
def client(store, monkeypatch):
    """The pages alone, in this process."""
    monkeypatch.setenv(BACKEND_STORE_URI_ENV_VAR, store)
    return alone()


def alone():
    made = flask.Flask("alone")
    made.add_url_rule("/", "serve", lambda: "")
    app.add_pages(made, visibility.everything)
    return made.test_client()


def grow(most):
    """Merges of merges, in models of three versions each, with an alias each."""
    base = registered.version("base")
    before = registered.version("tuned", base=base)
    for number in range(most):
        name = f"merged-{number // 3}"
        before = registered.version(name, base=base, sources=[before])
        registered.version("wide", base=base, sources=["models:/tuned/1"])
        mlflow.MlflowClient().set_registered_model_alias(name, "champion", before[-1])


def asked(client, path):
    """Statements that a page costs, once everything is open."""
    counted = []

    def count(*given):
        counted.append(given[2])

    assert client.get(path).status_code == 200
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    try:
        assert client.get(path).status_code == 200
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)
    return len(counted)


def test_a_larger_registry_is_not_asked_more_often(client):
    grow(4)
    few = {path: asked(client, path) for path in PATHS}
    grow(12)
    many = {path: asked(client, path) for path in PATHS}
    found = client.get(PATHS[-1], headers={"Accept": "application/json"}).json
    assert len(found["nodes"]) > 20
    assert many == few
    assert all(few.values())


@pytest.mark.slow
def test_the_pages_on_postgresql(postgres_server, tmp_path, monkeypatch):
    uri = postgres.schema(postgres_server, f"app_{uuid.uuid4().hex[:12]}")
    events = postgres.schema(postgres_server, f"app_ledger_{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", events)
    monkeypatch.setenv(BACKEND_STORE_URI_ENV_VAR, uri)
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    zoos.use(uri)
    try:
        grow(2)
        ledger.note("sign", "wide", subject="models:/wide/1")
        pages = alone()
        for path in PATHS:
            assert pages.get(path).status_code == 200
        found = pages.get(PATHS[0], headers={"Accept": "application/json"}).json["versions"]
        assert {each["uri"]: each["signed"] for each in found}["models:/wide/1"] is True
    finally:
        zoos.use(previous)
