"""MLflow with the pages: it is as it was, and the pages are there, over several workers."""

import importlib

import apps
import mlflow
import pytest
import registered
import requests
import zoos
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs.registry import pages
from mlflow_breadcrumbs.server import app


def test_mlflow_is_as_it_was(shown_app):
    client = mlflow.MlflowClient(shown_app.uri, shown_app.uri)
    assert client.get_registered_model("merged").aliases == {"champion": "1"}
    assert shown_app.ask("/health").text == "OK"
    assert "<title>MLflow" in shown_app.ask("/").text
    assert "Content-Security-Policy" not in requests.get(f"{shown_app.uri}/", timeout=60).headers


def test_every_worker_answers_alike(shown_app):
    answers = {shown_app.ask("/breadcrumbs/models/merged").text for _ in range(8)}
    assert len(answers) == 1


def led(uri, name, here):
    """Where the description of a version leads that is registered now, from MLflow's page there."""
    before = mlflow.get_tracking_uri()
    zoos.use(uri)
    try:
        version = registered.version(name, source="s3://nowhere/model")
        pages.tell(pages.Page("Something."), uri=version)
        text = mlflow.MlflowClient().get_model_version(name, "1").description
    finally:
        zoos.use(before)
    said, _, link = text.partition("\n\nMore on [the page of this version](")
    assert said == "Something."
    return here + link.removesuffix(").")


def test_below_a_prefix(furnished, tmp_path):
    found = apps.entry_points(tmp_path / "apps")
    options = ("--app-name", "breadcrumbs", "--gunicorn-opts", "--timeout 120")
    found |= {"_MLFLOW_STATIC_PREFIX": "/ml"}
    with zoos.serving(tmp_path, furnished / "mlflow.db", *options, **found) as uri:
        page = apps.ask(uri, "/ml/breadcrumbs/models/merged").text
        assert 'href="/ml/breadcrumbs/models/merged/versions/1"' in page
        assert 'href="/ml/#/models/merged"' in page
        assert apps.ask(uri, "/ml/breadcrumbs/openapi.json").json["servers"] == [
            {"url": "/ml/breadcrumbs"}
        ]
        assert apps.ask(uri, "/breadcrumbs/").status == 404
        version = apps.ask(uri, "/ml/breadcrumbs/models/merged/versions/1").text
        assert 'data-root="/ml/breadcrumbs/"' in version  # where a recall is sent to
        assert 'href="/ml/#/models/merged/versions/1"' in version
        assert apps.ask(uri, led(f"{uri}/ml", "linked", "/ml/")).status == 200


def test_what_is_registered_leads_to_its_page(shown_app):
    """From the description, relative to MLflow's own page, so that a prefix is no matter."""
    for name in ("linked", "with a space"):
        assert shown_app.ask(led(shown_app.uri, name, "/")).status == 200
        mlflow.MlflowClient(shown_app.uri, shown_app.uri).delete_registered_model(name)


def test_accounts_that_can_not_be_made_end_the_command(monkeypatch):
    monkeypatch.delenv("MLFLOW_FLASK_SERVER_SECRET_KEY", raising=False)
    module = importlib.import_module("mlflow_breadcrumbs.server.accounts_app")
    with pytest.raises(MlflowException, match="MLFLOW_FLASK_SERVER_SECRET_KEY"):
        getattr(module, "create_app")  # noqa: B009 - as MLflow does
    with pytest.raises(AttributeError, match="nothing"):
        getattr(module, "nothing")  # noqa: B009


def test_the_entry_points_are_there():
    assert callable(app.create_app)
