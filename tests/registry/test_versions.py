"""Resolving URIs and opening versions: what is found, and what is said when it is not."""

import sqlite3

import mlflow
import pytest
import sqlalchemy
import sqlalchemy.event
from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelAlias

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.registry import aliases, artifacts, uris, versions


def test_every_form_of_uri_is_pinned_to_the_version(zoo):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("tiny", "base", "1")
    plain = versions.resolve("models:/tiny/1")
    assert (plain.name, plain.version, plain.uri) == ("tiny", "1", "models:/tiny/1")
    assert plain.model_id is not None
    assert plain.tasks == ("colours", "tints", "hues")
    for uri in ("models:/tiny@base", "models:/tiny/latest", "models:/tiny/None"):
        found = versions.resolve(uri)
        assert (found.uri, found.given, found.model_id) == (plain.uri, uri, plain.model_id)
    logged = versions.resolve(f"models:/{plain.model_id}")
    assert (logged.name, logged.location) == (None, plain.location)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/none/1", r"cannot resolve models:/none/1: .*the registry has 'tiny'"),
        ("models:/tiny/7", r"cannot resolve models:/tiny/7: .*'tiny' has the versions 1"),
        ("models:/tiny@best", r"alias best not found.*'tiny' has the versions 1"),
        ("models:/none@best", r"the registry has"),
        ("models:/none/latest", r"'none' has no version at 'latest'"),
        ("models:/tiny/Production", r"'tiny' has no version at 'Production'"),
        ("models:/m-00000000000000000000000000000000", r"cannot resolve .* check the model id"),
        ("none/1", r"cannot resolve models:/none/1: .*the registry has 'tiny'"),
        ("tiny@best", r"alias best not found.*'tiny' has the versions 1"),
        ("tiny", r"'tiny' names no version; write NAME/VERSION or NAME@ALIAS"),
        ("models:/tiny", r"names no version"),
        ("models:/a/b/1", r"names no version"),
        ("runs:/1/model", r"names no version"),
        ("", r"'' names no version"),
    ],
)
def test_what_cannot_be_resolved_is_explained_with_what_there_is(zoo, uri, words):
    with pytest.raises(errors.RegistryError, match=words):
        versions.resolve(uri)


def test_a_copied_version_leads_to_the_same_model(zoo):
    client = mlflow.MlflowClient()
    client.copy_model_version("models:/tiny/1", "copy")
    client.copy_model_version("models:/copy/1", "copy of copy")
    original, copied = (
        versions.resolve("models:/tiny/1"),
        versions.resolve("models:/copy of copy/1"),
    )
    assert copied.model_id == original.model_id
    assert copied.location == original.location


def test_a_deleted_logged_model_is_still_read_where_its_bytes_are(zoo, tmp_path):
    before = versions.resolve("models:/tiny-hues/1")
    mlflow.MlflowClient().delete_logged_model(before.model_id)
    opened = versions.open_version(versions.resolve("models:/tiny-hues/1"), tmp_path)
    assert checkpoints.weights_digest(opened.weights) == before.recorded_digest
    with pytest.raises(errors.RegistryError, match=r"cannot resolve models:/m-.* check the model"):
        versions.resolve(f"models:/{before.model_id}")


def test_a_dangling_source_is_explained(zoo):
    database = zoo.tracking_uri.removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE model_versions SET source = 'models:/nowhere/3', storage_location = NULL "
            "WHERE name = 'tiny-hues'"
        )
    with pytest.raises(
        errors.RegistryError, match=r"cannot resolve models:/tiny-hues/1: .*nowhere"
    ):
        versions.resolve("models:/tiny-hues/1")


def test_a_deleted_run_does_not_matter(zoo, tmp_path):
    resolved = versions.resolve("models:/tiny-hues/1")
    mlflow.MlflowClient().delete_run(resolved.run_id)
    opened = versions.open_version(versions.resolve("models:/tiny-hues/1"), tmp_path)
    assert checkpoints.weights_digest(opened.weights) == resolved.recorded_digest


def test_opening_on_a_local_store_copies_nothing(zoo, tmp_path):
    opened = versions.open_version(versions.resolve(zoo.base), tmp_path)
    assert str(opened.weights).startswith(str(zoo.folder))
    assert not list(tmp_path.glob("m-*"))


def test_artifacts_that_are_gone_are_named(zoo, tmp_path):
    client = mlflow.MlflowClient()
    client.create_registered_model("gone")
    client.create_model_version("gone", str(tmp_path / "nowhere"))
    with pytest.raises(errors.RegistryError, match=r"models:/gone/1.*nowhere"):
        versions.open_version(versions.resolve("models:/gone/1"), tmp_path)


@pytest.mark.parametrize("content", [b"", b"flavors: [", b"\xff", b"flavors: 3\n", b"- flavors\n"])
def test_a_damaged_model_file_is_named(store, tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/MLmodel").write_bytes(content)
    client = mlflow.MlflowClient()
    client.create_registered_model("damaged")
    client.create_model_version("damaged", str(tmp_path / "model"))
    with pytest.raises(errors.IntegrityError, match=r"the MLmodel file of models:/damaged/1 at "):
        versions.open_version(versions.resolve("models:/damaged/1"), tmp_path)


def test_a_pickle_is_refused_with_how_to_import_it(store, tmp_path):
    import torch

    with mlflow.start_run():
        mlflow.pytorch.log_model(
            torch.nn.Linear(2, 2),
            name="model",
            registered_model_name="pickled",
            pip_requirements=["torch"],
            serialization_format="pickle",
        )
    words = (
        r"was logged by the flavor 'pytorch' and holds no safetensors.*mlflow-breadcrumbs import"
    )
    with pytest.raises(errors.RegistryError, match=words):
        versions.open_version(versions.resolve("models:/pickled/1"), tmp_path)


def test_a_server_that_is_down_is_named(monkeypatch):
    import zoos

    previous = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    zoos.use("http://127.0.0.1:9")
    try:
        with pytest.raises(
            errors.RegistryError, match=r"the tracking server http://127.0.0.1:9 do"
        ):
            versions.resolve("models:/tiny/1")
    finally:
        zoos.use(previous)


def test_an_alias_that_another_process_creates_at_the_same_moment(zoo):
    """MLflow looks for the row and then inserts it; another process's row comes in between."""
    database = zoo.tracking_uri.removeprefix("sqlite:///")
    inserted = []

    def interfere(session, *rest):
        for row in session.new:
            if isinstance(row, SqlRegisteredModelAlias) and not inserted:
                inserted.append((row.workspace, row.name, row.alias, row.version))
                with sqlite3.connect(database) as other:
                    other.execute(
                        "INSERT INTO registered_model_aliases (workspace, name, alias, version) "
                        "VALUES (?, ?, ?, ?)",
                        inserted[0],
                    )

    sqlalchemy.event.listen(sqlalchemy.orm.Session, "before_flush", interfere)
    try:
        aliases.point("tiny", "champion", "1")
    finally:
        sqlalchemy.event.remove(sqlalchemy.orm.Session, "before_flush", interfere)
    assert len(inserted) == 1
    assert versions.resolve("models:/tiny@champion").version == "1"


@pytest.mark.timeout(60)
def test_two_spellings_of_one_database_do_not_wait_for_each_other(store):
    """The lock that makes processes take turns is on the folder, and must be taken once."""
    mlflow.set_registry_uri("sqlite:///mlflow.db")
    assert mlflow.get_registry_uri() != mlflow.get_tracking_uri()
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/none/1"):
        versions.resolve("models:/none/1")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("models:/clip/3", ("clip", "3", None, None, None)),
        ("models:/a b@c/3", ("a b@c", "3", None, None, None)),
        ("models:/clip@best", ("clip", None, "best", None, None)),
        ("models:/a@b@best", ("a@b", None, "best", None, None)),
        ("models:/clip/latest", ("clip", None, None, "latest", None)),
        ("models:/m-0a1b", (None, None, None, None, "m-0a1b")),
        ("models:/m-0a1b/2", ("m-0a1b", "2", None, None, None)),
    ],
)
def test_a_uri_is_taken_apart_in_one_place(uri, parts):
    found = uris.parse(uri)
    assert (found.name, found.version, found.alias, found.stage, found.model_id) == parts
    assert found.is_pinned == (found.version is not None or found.model_id is not None)
    pinned = found.name and found.version
    assert uris.registered(uri) == ((found.name, found.version) if pinned else None)
    assert uris.logged_model(uri) == found.model_id


@pytest.mark.parametrize("uri", ["models:/clip", "clip/3", "models:/", "models:/a/b/c", "", "x@y"])
def test_what_is_no_versions_uri_is_refused(uri):
    assert uris.find(uri) is None
    with pytest.raises(errors.RegistryError, match="names no version; write NAME"):
        uris.parse(uri)


@pytest.mark.slow
def test_files_come_from_a_server_several_at_a_time(on_server, tmp_path):
    resolved = versions.resolve(on_server.sources[0])
    fetch = artifacts.Artifacts(resolved.uri, resolved.location, tmp_path / "all")
    sizes = fetch.sizes()
    fetch.fetch(sizes)
    assert {path: (tmp_path / "all" / path).stat().st_size for path in sizes} == sizes
    other = artifacts.Artifacts(resolved.uri, resolved.location, tmp_path / "some")
    with pytest.raises(errors.RegistryError, match="cannot read the artifacts of models:/tiny-"):
        other.fetch([*sizes, "absent.json"])
