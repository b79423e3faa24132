"""Moves of aliases that MLflow's server makes itself: each is one direct event, at once."""

import itertools
import json
import time
import uuid
from concurrent import futures

import apps
import click
import listener as listeners
import mlflow
import postgres
import pytest
import server_accounts
import zoos
from click import testing

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.ledger import alias_glances, alias_history, alias_state, events, stores
from mlflow_breadcrumbs.promotion import guards
from mlflow_breadcrumbs.server import app, pinning
from mlflow_breadcrumbs.webhooks import notifying

WORKERS = 2
SECRET = "a secret of the events' two ends"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def noticing(request, tmp_path_factory, empty_database):
    """A server of several workers with the app; nothing is guarded. Its ledger, who is told."""
    folder = tmp_path_factory.mktemp("noticing")
    place = f"sqlite:///{folder / zoos.LEDGER}"
    options = ("--app-name", "breadcrumbs", "--workers", str(WORKERS))
    found = apps.entry_points(folder / "apps") | {pinning.VARIABLE: ""}
    if request.param == "postgresql":
        server, short = request.getfixturevalue("postgres_server"), uuid.uuid4().hex[:12]
        place = postgres.schema(server, f"ledger_{short}")
        found |= {stores.VARIABLE: place}
        options += ("--backend-store-uri", postgres.schema(server, f"mlflow_{short}"))
    with listeners.running() as listener:
        found |= {notifying.URL: listener.url, notifying.SECRET: SECRET}
        with zoos.serving(folder, empty_database, *options, **found) as uri:
            yield uri, place, listener


def made(client, versions=2):
    """A new registered model; its name."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, "s3://nowhere/at/all")
    return name


def history(place, name):
    with stores.opened(place) as opened, opened.reading() as connection:
        return alias_history.read(events.of_name(connection, name))


def moves(place, name, count):
    """The moves of a model's aliases in a ledger, once there are so many."""
    for _ in range(600):
        found = history(place, name)
        if len(found) >= count:
            break
        time.sleep(0.05)
    return found


def told(found):
    return [(move.alias, move.before, move.after, move.cause, move.how) for move in found]


def direct(alias, before, after):
    return (alias, before, after, "direct", "server")


@pytest.fixture
def client(noticing):
    return mlflow.MlflowClient(noticing[0], noticing[0])


def test_every_way_by_which_an_alias_moves(noticing, client):
    _, place, _ = noticing
    name = made(client, 3)
    begun = ledger.now()
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "champion", "1")  # which moves nothing
    client.set_registered_model_alias(name, "champion", "2")
    client.delete_registered_model_alias(name, "champion")
    client.delete_registered_model_alias(name, "champion")
    client.set_registered_model_alias(name, "kept", "1")
    client.set_registered_model_alias(name, "gone", "3")
    client.delete_model_version(name, "3")
    client.rename_registered_model(name, f"{name}-renamed")
    client.delete_registered_model(f"{name}-renamed")
    ended = ledger.now()
    found = moves(place, name, 7)
    assert told(found) == [
        direct("champion", None, "1"),
        direct("champion", "1", "2"),
        direct("champion", "2", None),
        direct("kept", None, "1"),
        direct("gone", None, "3"),
        direct("gone", "3", None),
        direct("kept", "1", None),
    ]
    renamed = moves(place, f"{name}-renamed", 2)
    assert told(renamed) == [direct("kept", None, "1"), direct("kept", "1", None)]
    for move in [*found, *renamed]:
        assert begun <= move.earliest == move.latest <= ended
        assert (move.actor, "@" in move.noticed_by) == (None, True)


def test_what_is_no_model_or_not_done_is_no_move(noticing, client):
    _, place, _ = noticing
    name = made(client, 1)
    with pytest.raises(mlflow.MlflowException):
        client.set_registered_model_alias(name, "champion", "7")
    with pytest.raises(mlflow.MlflowException):
        client.delete_registered_model(f"{name}-absent")
    prompt = f"p-{uuid.uuid4().hex[:8]}"
    client.register_prompt(prompt, "Say something.")
    client.set_prompt_alias(prompt, "champion", 1)
    client.set_registered_model_alias(name, "champion", "1")
    assert len(moves(place, name, 1)) == 1
    assert history(place, prompt) == []


def test_many_at_once_over_several_workers(noticing, client):
    """Of each alias the moves are a chain without a gap, whichever worker made them."""
    _, place, _ = noticing
    name, steps, count = made(client, 3), 8, 6

    def move(alias):
        own = mlflow.MlflowClient(noticing[0], noticing[0])
        for step in range(steps):
            own.set_registered_model_alias(name, alias, str(step % 3 + 1))

    with futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(move, [f"a{number}" for number in range(count)]))
    found = moves(place, name, steps * count)
    expected = [None, *(str(step % 3 + 1) for step in range(steps))]
    for number in range(count):
        own = [move for move in found if move.alias == f"a{number}"]
        assert [(move.before, move.after) for move in own] == list(itertools.pairwise(expected))
    with stores.using(place):
        assert ledger.verify(in_mlflow=False).holds


@pytest.fixture
def at_client(noticing, tmp_path, monkeypatch):
    """This process uses the server, with a ledger of its own."""
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/own.db")
    previous = mlflow.get_tracking_uri()
    zoos.use(noticing[0])
    yield
    zoos.use(previous)


def test_our_own_moves_by_clients_are_no_direct_ones(noticing, client, at_client, monkeypatch):
    """With a ledger of theirs, of which the server learns by tags, or with the server's own."""
    _, place, _ = noticing
    if place.startswith("postgresql"):
        monkeypatch.setenv(stores.VARIABLE, place)  # else a ledger of all takes nothing from tags
    name = made(client)
    for number in ("1", "2", "1"):
        ledger.set_alias(name, "champion", number)
    client.set_registered_model_alias(name, "other", "1")
    moves(place, name, 4)
    with stores.using(place), stores.serving():
        ledger.look([name])
    found = history(place, name)
    assert [move.cause for move in found if move.alias == "champion"] == ["merge"] * 3
    assert [move.cause for move in found if move.alias == "other"] == ["direct"]


def test_no_second_event_by_a_look_or_a_webhook(noticing, client, at_client, monkeypatch):
    _, place, _ = noticing
    monkeypatch.setenv(stores.VARIABLE, place)
    name = made(client)
    numbers = ("1", "2", "1", "2")
    times = []
    for number in numbers:
        client.set_registered_model_alias(name, "champion", number)
        times.append(ledger.now())
        ledger.look([name])
    moves(place, name, len(numbers))
    for number, changed in zip(numbers, times, strict=True):
        identifier = f"delivery-{uuid.uuid4()}"
        ledger.take(ledger.Delivery(identifier, name, "champion", number, changed))
    ledger.sync()
    found = history(place, name)
    assert [move.after for move in found] == list(numbers)
    assert {move.cause for move in found} == {"direct"}


def test_events_go_out_once_whichever_worker_sends_them(noticing, client):
    """In order; a receiver that refuses one gets it again, and holds up no call of MLflow's."""
    _, place, listener = noticing
    name, count = made(client), 10
    before = len(listener.requests)
    listener.answers = [500]
    for number in range(count):
        client.set_registered_model_alias(name, f"a{number}", "1")
    assert len(moves(place, name, count)) == count

    def came():
        pairs = zip(listener.requests, listener.events, strict=True)
        found = [(headers["webhook-id"], said["data"]) for (headers, _), said in pairs]
        return [(identifier, event) for identifier, event in found if event["name"] == name]

    for _ in range(1200):
        if f"a{count - 1}" in [event["details"]["alias"] for _, event in came()]:
            break
        time.sleep(0.05)
    found = came()
    assert len({identifier for identifier, _ in found}) == count
    sent = [headers["webhook-id"] for headers, _ in listener.requests[before:]]
    assert len(sent) == len(set(sent)) + 1  # an event of another test may have been the refused one
    names = list(dict.fromkeys(event["details"]["alias"] for _, event in found))
    assert names == [f"a{number}" for number in range(count)]
    listener.check(SECRET)


def test_a_client_is_told_that_the_server_writes_moves(noticing, at_client, tmp_path):
    assert guards.writes_moves()
    (tmp_path / "secret").write_text(SECRET)
    command = ["hooks", "register", "--url", "http://127.0.0.1:9/", "--no-test", "--json"]
    done = testing.CliRunner().invoke(cli.main, [*command, "--secret-file", f"{tmp_path}/secret"])
    assert done.exit_code == 0, done.output
    mlflow.MlflowClient().delete_webhook(json.loads(done.stdout)["id"])
    assert "this webhook is needed for another ledger only" in done.stderr


def test_a_receiver_without_a_secret_ends_the_command_with_one_message(monkeypatch):
    monkeypatch.setenv(notifying.URL, "https://chat.example.org/hook")
    monkeypatch.delenv(notifying.SECRET, raising=False)
    with pytest.raises(click.ClickException, match="set BREADCRUMBS_NOTIFY_SECRET"):
        app.check()


def test_what_another_server_moves_is_found_when_this_one_starts(empty_database, tmp_path):
    """And what it moved between two moves here is in its place."""
    plain = tmp_path / "plain"
    plain.mkdir()
    place = f"sqlite:///{tmp_path / zoos.LEDGER}"
    found = apps.entry_points(tmp_path / "apps") | {pinning.VARIABLE: ""}
    database = ("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db")
    with zoos.serving(plain, empty_database) as uri:
        name = made(mlflow.MlflowClient(uri, uri), 3)
    (plain / "mlflow.db").rename(plain / "begun.db")
    with zoos.serving(tmp_path, plain / "begun.db", "--app-name", "breadcrumbs", **found) as own:
        client = mlflow.MlflowClient(own, own)
        client.set_registered_model_alias(name, "champion", "1")
        moves(place, name, 1)
        with zoos.serving(plain, plain / "begun.db", *database) as uri:
            mlflow.MlflowClient(uri, uri).set_registered_model_alias(name, "champion", "2")
        client.set_registered_model_alias(name, "champion", "3")
        assert told(moves(place, name, 3)) == [
            direct("champion", None, "1"),
            direct("champion", "1", "2"),
            direct("champion", "2", "3"),
        ]
    with zoos.serving(plain, plain / "begun.db", *database) as uri:
        mlflow.MlflowClient(uri, uri).set_registered_model_alias(name, "champion", "1")
    with stores.opened(place) as opened, opened.writing() as connection:  # the next look is due
        alias_state.looked(connection, alias_glances.CLAIMED, "2026-01-01T00:00:00.000+00:00")
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    with zoos.serving(tmp_path, tmp_path / "moved.db", "--app-name", "breadcrumbs", **found):
        assert told(moves(place, name, 4))[3] == direct("champion", "3", "1")


def test_what_was_moved_is_written_before_the_server_ends(empty_database, tmp_path):
    found = apps.entry_points(tmp_path / "apps") | {pinning.VARIABLE: ""}
    place = f"sqlite:///{tmp_path / zoos.LEDGER}"
    with zoos.serving(tmp_path, empty_database, "--app-name", "breadcrumbs", **found) as uri:
        client = mlflow.MlflowClient(uri, uri)
        name = made(client)
        with stores.opened(place) as opened, opened.writing():  # so that nothing is written yet
            for number in ("1", "2"):
                client.set_registered_model_alias(name, "champion", number)
            assert history(place, name) == []
    assert [move.after for move in history(place, name)] == ["1", "2"]


def test_a_ledger_that_can_not_be_written_fails_no_call_of_mlflows(empty_database, tmp_path):
    found = apps.entry_points(tmp_path / "apps") | {pinning.VARIABLE: ""}
    found |= {stores.VARIABLE: "postgresql://nobody@127.0.0.1:9/nowhere"}
    with zoos.serving(tmp_path, empty_database, "--app-name", "breadcrumbs", **found) as uri:
        client = mlflow.MlflowClient(uri, uri)
        name = made(client)
        client.set_registered_model_alias(name, "champion", "2")
        assert client.get_registered_model(name).aliases == {"champion": "2"}
        for _ in range(200):
            if "can't be written down now" in (log := (tmp_path / "log").read_text()):
                break
            time.sleep(0.05)
    assert "moves of aliases can't be written down now: the ledger postgresql" in log


def test_with_accounts_it_is_known_who_did_it(accounts):
    place = f"sqlite:///{accounts.folder / zoos.LEDGER}"
    before = len(history(place, "merged"))
    with pytest.MonkeyPatch.context() as patch:
        server_accounts.sign_in(patch, "bob")
        client = mlflow.MlflowClient(accounts.uri, accounts.uri)
        client.set_registered_model_alias("merged", "mine", "1")
        server_accounts.sign_in(patch, "admin")  # MLflow asks for more to take one away
        client.delete_registered_model_alias("merged", "mine")
    found = moves(place, "merged", before + 2)[before:]
    assert [(move.actor.partition("@")[0], move.cause) for move in found] == [
        ("bob", "direct"),
        ("admin", "direct"),
    ]
    assert "directly in MLflow, by bob@" in alias_history.described(found[0])
    password = server_accounts.password("admin")
    page = "/breadcrumbs/models/merged/aliases"
    shown = accounts.ask(page, as_json=True, account="admin", password=password).json["moves"][0]
    assert (shown["alias"], shown["actor"].partition("@")[0]) == ("mine", "admin")
    assert shown["direct"]
