"""A promotion over a tracking server that loses answers, is out of order, or gone half-way."""

import multiprocessing

import mlflow
import proxy
import pytest
import zoos

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, settling
from mlflow_breadcrumbs.promotion import policies, promote, rollback
from mlflow_breadcrumbs.registry import aliases

pytestmark = pytest.mark.slow

RULES = policies.parse("freeze: [{starts: 2001-01-01, ends: 2001-01-02}]")
ALIAS = "registered-models/alias$"


@pytest.fixture(scope="module")
def remote(server_zoo, tmp_path_factory):
    """Two versions on the server, and a proxy before it; the name of the model."""
    uri, folder = server_zoo.tracking_uri, tmp_path_factory.mktemp("remote")
    with proxy.running(uri) as between:
        with zoos.working_in(folder, uri):
            name, version = server_zoo.base.removeprefix("models:/").rsplit("/", 1)
            first = mlflow.MlflowClient().get_model_version(name, version)
            copy = mlflow.register_model(first.source, name, tags=first.tags)
        yield between, name, (version, str(copy.version))


@pytest.fixture
def through(remote, tmp_path, monkeypatch):
    """The same, seen through the proxy by an impatient client, and an empty ledger."""
    between, name, versions = remote
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", f"sqlite:///{tmp_path}/ledger.db")
    zoos.use(between.uri)
    yield between, name, versions
    between.behave()
    aliases.remove(name, "champion")
    zoos.use(previous)


def decide(name, version):
    return promote.promote(promote.PromotionRequest(f"models:/{name}/{version}", "champion", RULES))


def told(name):
    """The outcomes that this ledger wrote: those of other tests' ledgers are taken up, too.

    That the test before took its alias away at the end, past the package, is noticed as well.
    """
    return [
        (event.kind, event.phase, event.details.get("verdict"))
        for event in ledger.history(name)
        if event.phase != "intent"
        and event.kind != "alias_observed"
        and events.FROM_LEDGER not in event.details
    ]


def test_an_answer_that_is_lost_after_the_alias_was_moved_is_a_success(through):
    between, name, (one, _) = through
    between.misbehave("lose", ALIAS, times=1, method="POST")
    assert decide(name, one).result == "promoted"
    assert between.met == 1
    assert told(name) == [("alias", "done", None), ("promotion", "done", "promoted")]
    assert aliases.version_at(name, "champion") == one


def test_a_server_that_is_out_of_order_moves_nothing(through):
    between, name, (one, two) = through
    decide(name, one)
    between.misbehave("500", ALIAS, method="POST")
    with pytest.raises(errors.UnreachableError, match="answered 500; see the server's log"):
        decide(name, two)
    between.behave()
    assert aliases.version_at(name, "champion") == one
    assert decide(name, two).result == "promoted"
    assert told(name)[2:] == [
        ("alias", "abandoned", None),
        ("promotion", "abandoned", None),
        ("alias", "done", None),
        ("promotion", "done", "promoted"),
    ]


def test_a_server_that_is_gone_when_the_alias_is_moved_leaves_it_to_be_found_out(through):
    """The alias was moved, the answer was lost, and where it is can't be asked either."""
    between, name, (one, two) = through
    decide(name, one)

    def gone(*arguments):
        raise errors.UnreachableError("no answer")

    def lost(*arguments, set_alias=aliases.point):
        set_alias(*arguments)
        aliases.version_at = gone
        gone()

    def promoter():
        aliases.point = lost
        with pytest.raises(errors.UnreachableError):
            decide(name, two)

    process = multiprocessing.get_context("fork").Process(target=promoter)
    process.start()
    process.join()
    assert process.exitcode == 0
    between.misbehave("500", ".")
    assert settling.settle() == 0  # nobody can know yet
    between.behave()
    assert aliases.version_at(name, "champion") == two
    found = rollback.rollback(name, "champion")
    assert found.after == one
    assert [kind for kind in told(name) if kind[0] == "promotion"] == [
        ("promotion", "done", "promoted")
    ] * 2
    assert ledger.verify(in_mlflow=False).holds


def test_a_server_that_is_down_is_one_message(through):
    between, name, (one, _) = through
    between.misbehave("500", ".")
    with pytest.raises(errors.UnreachableError, match="cannot resolve"):
        decide(name, one)
    between.misbehave("500", "runs/create")
    with pytest.raises(errors.UnreachableError, match="cannot start a run"):
        decide(name, one)
    between.behave()
    assert told(name) == []
    assert aliases.version_at(name, "champion") is None
