"""What is not guarded: every call of MLflow's client gives what a server without the app gives."""

import mlflow
import pytest
import zoos
from mlflow.exceptions import MlflowException

SOURCE = "s3://somewhere/model"
NAME, NEW = "parity", "parity renamed"
CALLS = (
    ("create_registered_model", NAME, {"team": "vision"}, "of all"),
    ("create_registered_model", NAME),
    ("get_registered_model", NAME),
    ("update_registered_model", NAME, "of some"),
    ("set_registered_model_tag", NAME, "breadcrumbs.note", "a"),
    ("delete_registered_model_tag", NAME, "team"),
    ("create_model_version", NAME, SOURCE),
    ("create_model_version", NAME, SOURCE, None, {"breadcrumbs.task": "cars"}),
    ("get_model_version", NAME, "2"),
    ("get_model_version", NAME, "9"),
    ("get_model_version_download_uri", NAME, "1"),
    ("update_model_version", NAME, "1", "the first"),
    ("set_model_version_tag", NAME, "1", "breadcrumbs.task", "signs"),
    ("set_model_version_tag", NAME, "9", "breadcrumbs.task", "signs"),
    ("delete_model_version_tag", NAME, "2", "breadcrumbs.task"),
    ("set_registered_model_alias", NAME, "champion", "1"),
    ("set_registered_model_alias", NAME, "champion", "2"),
    ("set_registered_model_alias", NAME, "champion", "9"),
    ("set_registered_model_alias", NAME, "latest", "1"),
    ("set_registered_model_alias", "absent", "champion", "1"),
    ("get_model_version_by_alias", NAME, "champion"),
    ("get_model_version_by_alias", NAME, "nobody"),
    ("search_registered_models", f"name = '{NAME}'"),
    ("search_model_versions", f"name = '{NAME}'"),
    ("rename_registered_model", NAME, NEW),
    ("rename_registered_model", "absent", NEW),
    ("get_registered_model", NEW),
    ("copy_model_version", f"models:/{NEW}/1", NEW),
    ("delete_registered_model_alias", NEW, "champion"),
    ("delete_registered_model_alias", NEW, "nobody"),
    ("delete_model_version", NEW, "2"),
    ("delete_model_version", NEW, "2"),
    ("get_registered_model", NEW),
    ("delete_registered_model", NEW),
    ("delete_registered_model", NEW),
)
WHEN = ("creation_timestamp", "last_updated_timestamp")
"""What differs from call to call."""


def plain(value):
    """An answer as plain values, without the times."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if hasattr(value, "to_proto"):
        return {key: plain(each) for key, each in dict(value).items() if key not in WHEN}
    return value


def answers(uri):
    client = mlflow.MlflowClient(uri, uri)
    for name, *given in CALLS:
        try:
            yield name, given, plain(getattr(client, name)(*given))
        except MlflowException as error:
            yield name, given, str(error)


@pytest.fixture
def without(empty_database, tmp_path):
    """A server without the app."""
    with zoos.serving(tmp_path, empty_database) as uri:
        yield uri


def test_mlflows_client_gets_the_same_answers(guarded, without):
    with_app = list(answers(guarded.uri))
    assert with_app == list(answers(without))
    refused = [each for _, _, each in with_app if isinstance(each, str) and "RESOURCE" in each]
    assert len(refused) >= 8
