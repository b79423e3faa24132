"""Many ask a server of several workers for one alias at once: one wins each step, none is lost."""

import os
import uuid
from concurrent import futures

import apps
import mlflow
import postgres
import pytest
import requests
import zoos

from mlflow_breadcrumbs import ledger

pytestmark = pytest.mark.slow

EACH = int(os.environ.get("PROMOTERS", "8"))
"""At once; PROMOTERS=50 proves the same."""
ROUNDS = 2


@pytest.fixture
def on_postgres(postgres_server, empty_database, tmp_path, monkeypatch):
    """A guarding server of three workers on PostgreSQL; this process reads its databases."""
    short = uuid.uuid4().hex[:12]
    registry = postgres.schema(postgres_server, f"mlflow_{short}")
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", postgres.schema(postgres_server, f"own_{short}"))
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    zoos.use(registry)
    mlflow.set_experiment("race")
    zoos.merge_family(zoos.fill(tmp_path, registry))
    (tmp_path / "server").mkdir()
    found = apps.entry_points(tmp_path / "apps") | apps.configuration(tmp_path, apps.PINNED)
    options = ("--app-name", "breadcrumbs", "--workers", "3", "--backend-store-uri", registry)
    with zoos.serving(tmp_path / "server", empty_database, *options, **found) as uri:
        yield uri
    zoos.use(previous)


def test_one_wins_each_step(on_postgres):
    client = mlflow.MlflowClient()
    first = client.get_model_version("merged", "1")
    numbers = [
        str(client.create_model_version("merged", first.source, first.run_id, first.tags).version)
        for _ in range(ROUNDS * EACH)
    ]
    champion = None
    for step in range(ROUNDS):
        asked = numbers[step * EACH : (step + 1) * EACH]

        def ask(version, champion=champion):
            fields = {"name": "merged", "alias": "champion", "version": version}
            fields |= {"expected": champion, "user": f"user{version}"}
            path = f"{on_postgres}/breadcrumbs/promote"
            return requests.post(path, json=fields, timeout=600).json()

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
