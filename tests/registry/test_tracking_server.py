"""A tracking server that loses answers, is out of order, slow, or gone during an upload."""

import re

import mlflow
import proxy
import pytest
import zoos

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def remote(server_zoo):
    """The zoo on the server, and a proxy before it."""
    with proxy.running(server_zoo.tracking_uri) as between:
        yield server_zoo, between


@pytest.fixture
def through(remote, light, tmp_path, monkeypatch):
    """The zoo, seen through the proxy; the client is as impatient as a test wants it."""
    zoo, between = remote
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    zoos.use(between.uri)
    mlflow.set_experiment("remote")
    yield zoo, between
    between.behave()
    zoos.use(previous)


def request(zoo, name, **changes):
    return flow.MergeRequest(
        **{
            "base": zoo.base,
            "sources": zoo.sources[:2],
            "registered_model": name,
            "recipe": recipe.MergeRecipe.from_method("task_arithmetic", sources=2),
            "device": "cpu",
            "backend": "reference",
            "alias": "candidate",
            **changes,
        }
    )


def versions(name):
    return mlflow.MlflowClient().search_model_versions(f"name = '{name}'")


def check_one(name, result):
    """One version with its alias, of one finished run with one model."""
    (version,) = versions(name)
    client = mlflow.MlflowClient()
    assert str(version.version) == result.version.version
    assert client.get_model_version_by_alias(name, "candidate").version == version.version
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    key = "tags.`breadcrumbs.request_digest`"
    asked = run.data.tags["breadcrumbs.request_digest"]
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"{key} = '{asked}'"
    )
    assert [model.model_id for model in models] == [result.version.model_id]
    return client.search_runs([run.info.experiment_id], f"{key} = '{asked}'")


def refused(zoo, name, words):
    with pytest.raises(errors.RegistryError, match=words) as caught:
        flow.merge(request(zoo, name))
    assert mlflow.active_run() is None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("retries", ["0", "1"])
def test_an_answer_that_is_lost_after_the_version_was_made(through, monkeypatch, retries):
    """With a retry of MLflow's client two versions are made; without one, none is reported."""
    zoo, between = through
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    between.misbehave("lose", "model-versions/create", times=1)
    result = flow.merge(request(zoo, f"lost-{retries}"))
    assert between.met == 1
    assert (result.version.version, result.reused) == ("1", False)
    check_one(f"lost-{retries}", result)


def test_a_server_that_is_out_of_order_when_the_version_is_made(through):
    zoo, between = through
    between.misbehave("503", "model-versions/create")
    words = (
        f"cannot register 'broken': the tracking server {re.escape(between.uri)} answered 503; see"
    )
    refused(zoo, "broken", words)
    between.behave()
    assert not versions("broken")
    result = flow.merge(request(zoo, "broken"))
    (run,) = check_one("broken", result)  # the model that was logged is taken up, not made again
    assert result.reused
    assert run.info.run_id == result.version.run_id


def test_a_server_that_is_gone_in_the_middle_of_an_upload(through):
    zoo, between = through
    between.misbehave("cut", "open_clip_model.safetensors", method="PUT")
    words = (
        f"cannot log the merged model: the tracking server {re.escape(between.uri)} "
        "does not answer; .*, then run the same"
    )
    refused(zoo, "cut", words)
    between.behave()
    result = flow.merge(request(zoo, "cut"))
    first, second = check_one("cut", result)
    assert {first.info.status, second.info.status} == {"FINISHED", "FAILED"}


def test_a_server_that_is_gone_for_good(through, caplog):
    """The run can't be ended either; that is said, and does not hide why the job stopped."""
    zoo, between = through
    between.misbehave("500", "runs/(log|update)", method="POST")
    refused(zoo, "gone", "merge gone stopped: the tracking server .* answered 500")
    between.behave()
    assert re.search(r"the run \w+ could not be ended", caplog.text)
    assert not versions("gone")


def test_a_server_that_is_slow(through, monkeypatch):
    zoo, between = through
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    between.misbehave("slow", "logged-models", method="POST")
    refused(zoo, "slow", "did not answer within 1 s; set MLFLOW_HTTP_REQUEST_TIMEOUT to more")
    between.behave()
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    check_one("slow", flow.merge(request(zoo, "slow")))
