"""Many ask a server of several workers for one alias at once: one wins each step, none is lost."""

import functools
import os
import uuid
from concurrent import futures

import apps
import mlflow
import postgres
import pytest
import requests
import zoos
from mlflow.exceptions import MlflowException, RestException

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import locks
from mlflow_breadcrumbs.registry import tag_keys

pytestmark = pytest.mark.slow

EACH = int(os.environ.get("PROMOTERS", "8"))
"""At once; PROMOTERS=50 proves the same."""
ROUNDS = 2
PINNED = apps.PINNED | {"racing*@champion": "average_accuracy: 0\n"}


@pytest.fixture(scope="module")
def on_postgres(postgres_server, empty_database, tmp_path_factory):
    """A guarding server of three workers on PostgreSQL; this process reads its databases."""
    short = uuid.uuid4().hex[:12]
    folder = tmp_path_factory.mktemp("race")
    registry = postgres.schema(postgres_server, f"mlflow_{short}")
    with pytest.MonkeyPatch.context() as patch:
        own = postgres.schema(postgres_server, f"own_{short}")
        patch.setenv("BREADCRUMBS_LEDGER_URI", own)
        patch.chdir(folder)
        previous = mlflow.get_tracking_uri()
        zoos.use(registry)
        mlflow.set_experiment("race")
        zoos.merge_family(zoos.fill(folder, registry))
        (folder / "server").mkdir()
        found = apps.entry_points(folder / "apps") | apps.configuration(folder, PINNED)
        options = ("--app-name", "breadcrumbs", "--workers", "3", "--backend-store-uri", registry)
        with zoos.serving(folder / "server", empty_database, *options, **found) as uri:
            yield uri
        zoos.use(previous)


def copied(client, name):
    """Another version of the first merge, which a policy lets through; its number."""
    first = client.get_model_version("merged", "1")
    return str(client.create_model_version(name, first.source, first.run_id, first.tags).version)


def promoted(uri, name, version, **more):
    """What the server answers to a promotion."""
    fields = {"name": name, "alias": "champion", "version": version} | more
    return requests.post(f"{uri}/breadcrumbs/promote", json=fields, timeout=600).json()


def done(act):
    """Whether the server let something be done."""
    try:
        act()
    except RestException as error:
        if error.error_code in ("PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise
    return True


def test_one_wins_each_step(on_postgres):
    client = mlflow.MlflowClient()
    numbers = [copied(client, "merged") for _ in range(ROUNDS * EACH)]
    champion = None
    for step in range(ROUNDS):
        asked = numbers[step * EACH : (step + 1) * EACH]

        def ask(version, champion=champion):
            more = {"expected": champion, "user": f"user{version}"}
            return promoted(on_postgres, "merged", version, **more)

        with futures.ThreadPoolExecutor(EACH) as pool:
            answers = list(pool.map(ask, asked))
        results = sorted(answer.get("result", str(answer)) for answer in answers)
        assert results == ["lost"] * (EACH - 1) + ["promoted"]
        winner = next(each["version"] for each in answers if each["result"] == "promoted")
        assert client.get_model_version_by_alias("merged", "champion").version == int(winner)
        last = ledger.alias_changes("merged", "champion")[-1]
        assert (last.before, last.after, last.cause) == (champion, winner, "promote")
        assert last.actor.startswith(f"user{winner}@")
        champion = winner
    assert len(ledger.alias_changes("merged", "champion")) == ROUNDS
    verdict = ledger.verify()
    assert (verdict.holds, verdict.problem) == (True, None)


def leaving(uri, number):
    """A model, its version, and one of three ways to have the server take them away."""
    near, far = mlflow.MlflowClient(), mlflow.MlflowClient(uri, uri)
    name = f"racing-{uuid.uuid4().hex[:12]}"
    near.create_registered_model(name)
    version = copied(near, name)
    way = (
        functools.partial(far.delete_model_version, name, version),
        functools.partial(far.rename_registered_model, name, f"gone-{name}"),
        functools.partial(far.delete_registered_model, name),
    )[number % 3]
    return name, version, way


@pytest.mark.parametrize("number", range(3))
def test_what_is_being_promoted_is_not_taken_away(on_postgres, number):
    """The alias is set while others wait, who then find it there."""
    name, version, away = leaving(on_postgres, number)
    with futures.ThreadPoolExecutor(1) as pool:
        with locks.held(name):
            going = pool.submit(done, away)
            futures.wait([going], timeout=2)
            mlflow.MlflowClient().set_registered_model_alias(name, "champion", version)
        assert going.result() is False
    live = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
    assert str(live.version) == version


def test_nothing_is_gone_that_was_promoted(on_postgres):
    """A version is promoted while it, or its model, is deleted or its model renamed."""
    near = mlflow.MlflowClient()
    for number in range(EACH):
        name, version, away = leaving(on_postgres, number)
        with futures.ThreadPoolExecutor(2) as pool:
            going = pool.submit(done, away)
            answer = pool.submit(promoted, on_postgres, name, version).result()
        won = answer.get("result") == "promoted"
        assert won is not going.result(), answer
        if won:
            live = near.get_model_version_by_alias(name, "champion")
            assert (str(live.version), live.tags[tag_keys.KIND]) == (version, "merge")
        else:
            for left in (name, f"gone-{name}"):
                with pytest.raises(MlflowException):
                    near.get_model_version_by_alias(left, "champion")
    assert ledger.verify().holds
