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
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.promotion import recalls
from mlflow_breadcrumbs.server import app, recalled, visibility

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


def statements(act):
    """What the databases are asked, once everything is open."""
    counted = []

    def count(*given):
        counted.append(given[2])

    act()
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    try:
        act()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)
    return counted


def asked(client, path):
    """How many statements a page costs."""

    def get():
        assert client.get(path).status_code == 200

    return len(statements(get))


def test_a_larger_registry_is_not_asked_more_often(client):
    grow(4)
    few = {path: asked(client, path) for path in PATHS}
    grow(12)
    many = {path: asked(client, path) for path in PATHS}
    found = client.get(PATHS[-1], headers={"Accept": "application/json"}).json
    assert len(found["nodes"]) > 20
    assert many == few
    assert all(few.values())


def test_where_nothing_was_recalled_each_database_is_asked_once(client):
    grow(4)
    selects = [text for text in statements(recalled.standing) if text.startswith("SELECT")]
    about = [text.partition("FROM")[2].split()[0] for text in selects]
    assert about == ["model_versions", "breadcrumbs_alembic_version", "breadcrumbs_events"]


def test_a_recall_that_is_only_in_the_tags_of_its_version_is_seen(client, tmp_path):
    registered.version("wide")
    with stores.using(f"sqlite:///{tmp_path}/another.db"), stores.serving():
        digest = recalls.recall("models:/wide/1", "test images").weights_digest
    assert recalled.standing()[digest].reason == "test images"
    page = client.get(PATHS[3], headers={"Accept": "application/json"}).json
    assert (page["recalled"], page["suspects"]) == (True, [])


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
