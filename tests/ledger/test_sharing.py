"""One history for all who use a registry behind a server, each with a ledger of their own."""

import contextlib
import json
import uuid

import mlflow
import postgres
import pytest
import zoos

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import events, letters, reading, sharing, stores, turns
from mlflow_breadcrumbs.registry import aliases, catalog
from mlflow_breadcrumbs.support import canonical


def digest(name, number="1"):
    """Of the weights of a version."""
    return canonical.digest([name, number])


@pytest.fixture
def name(server, tmp_path, monkeypatch):
    """A registered model on the server with two versions; its name."""
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    zoos.use(server)
    name = f"shared-{uuid.uuid4().hex[:12]}"
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    run = client.create_run("0").info
    for number in "12":
        tags = {"breadcrumbs.weights_digest": digest(name, number)}
        client.create_model_version(name, f"{run.artifact_uri}/{number}", run.run_id, tags)
    yield name
    zoos.use(previous)


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Be on somebody's machine, with a data folder, and so a ledger, of its own."""

    @contextlib.contextmanager
    def machine(person, **more):
        with monkeypatch.context() as patch:
            patch.setenv("XDG_DATA_HOME", str(tmp_path / person))
            patch.setenv("MLFLOW_TRACKING_USERNAME", person)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
            for key, value in more.items():
                patch.setenv(key, value)
            yield

    return machine


def version(name, number="1"):
    return f"models:/{name}/{number}"


def tags(name, number="1"):
    """The events in the tags of a version, by key."""
    found = mlflow.MlflowClient().get_model_version(name, number).tags
    return {key: text for key, text in found.items() if key.startswith(letters.PREFIX)}


def approve(name, comment="", number="1"):
    details = {"weights_digest": digest(name, number), "comment": comment}
    return ledger.note("approval", name, subject=version(name, number), details=details)


def told(name):
    return [(event.actor.partition("@")[0], event.kind) for event in ledger.history(name)]


def test_what_one_wrote_counts_for_another_and_keeps_its_hash(name, on):
    with on("ann"):
        head = approve(name, "looked at it")
        (key,) = tags(name)
        assert key == f"breadcrumbs.event/{head.ledger}/{head.sequence}"
        assert json.loads(tags(name)[key])["hash"] == head.hash
    with on("ben"):
        (event,) = ledger.proven(name, [digest(name)])
        assert event.details["comment"] == "looked at it"
        assert event.details["from_ledger"] == head.tag()
        assert event.actor.startswith("ann@")
        assert len(ledger.proven(name)) == 1  # taken up once
        assert ledger.verify().holds
        assert ledger.head().ledger != head.ledger


def test_a_ledger_that_all_share_writes_and_takes_no_tags(name, on, tmp_path, postgres_server):
    uri = postgres.schema(postgres_server, f"shared_{uuid.uuid4().hex[:12]}")
    with on("ann", BREADCRUMBS_LEDGER_URI=uri):
        approve(name)
        assert not tags(name)
    with on("ben"):
        approve(name)
    with on("ann", BREADCRUMBS_LEDGER_URI=uri):
        assert told(name) == [("ann", "approval")]


def test_a_tag_that_was_changed_lets_nothing_through_until_it_is_mended(name, on):
    with on("ann"):
        approve(name, "yes")
    (key,) = tags(name)
    client = mlflow.MlflowClient()
    client.set_model_version_tag(name, "1", key, tags(name)[key].replace("yes", "no"))
    with on("ben"):
        with pytest.raises(errors.LedgerError, match=rf"the tag {key} of .*was changed: its hash"):
            ledger.proven(name, [digest(name)])
        assert ledger.proven(name, [digest(name, "2")]) == []  # others are not stopped by it
        assert "was changed" in ledger.verify().problem
    client.delete_model_version_tag(name, "1", key)
    with on("ann"):
        ledger.sync()
    with on("ben"):
        (event,) = ledger.proven(name, [digest(name)])
        assert event.details["comment"] == "yes"
        assert ledger.verify().holds


def test_a_tag_that_was_written_anew_contradicts_whoever_took_it_up(name, on):
    with on("ann"):
        head = approve(name)
    with on("ben"):
        ledger.proven(name)
    (key,) = tags(name)
    content = json.loads(tags(name)[key])["event"] | {"actor": "eve@here"}
    forged = letters.Letter(
        events.ChainHead(head.sequence, canonical.digest(content), head.ledger),
        version(name),
        content,
    )
    mlflow.MlflowClient().set_model_version_tag(name, "1", key, forged.text)
    for person in ("ann", "ben"):
        with on(person):
            with pytest.raises(errors.LedgerError, match="was changed: its event has the hash"):
                ledger.proven(name, [digest(name)])
            assert told(name) == [("ann", "approval")]
            assert "was changed" in ledger.verify().problem


def test_a_tag_that_was_deleted_shows_and_comes_back(name, on):
    with on("ann"):
        approve(name)
    (key,) = tags(name)
    with on("ben"):
        ledger.proven(name)
    mlflow.MlflowClient().delete_model_version_tag(name, "1", key)
    with on("ben"):
        assert len(ledger.proven(name)) == 1
        assert f"the tag {key} of {version(name)} was deleted" in ledger.verify().problem
        ledger.sync()
        assert ledger.verify().holds
    assert list(tags(name)) == [key]


def test_an_event_on_another_version_says_nothing_there(name, on):
    with on("ann"):
        approve(name)
    ((key, text),) = tags(name).items()
    client = mlflow.MlflowClient()
    client.set_model_version_tag(name, "2", key, text)
    client.delete_model_version_tag(name, "1", key)
    with on("ben"):
        assert ledger.proven(name, [digest(name, "2")]) == []
        assert ledger.verify().holds


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"phase": "intent"},
        {"time": "tomorrow"},
        {"time": "2026-03-03T14:00:05.000+01:00"},
        {"actor": "an\u202en@here"},
        {"details": "none"},
        {"sequence": True},
        {"details": {"uri": "https://ann:password@host"}},
    ],
)
def test_what_no_ledger_writes_is_refused(change):
    uri, own = "models:/m/1", str(uuid.uuid4())
    sound = {
        "actor": "ann@here",
        "kind": "approval",
        "phase": "done",
        "name": "m",
        "subject": uri,
        "run_id": None,
        "intent": None,
        "details": {},
        "sequence": 1,
        "previous": canonical.digest(0),
        "time": "2026-03-03T14:00:05.000+00:00",
        "of_a_later_release": 1,
    }

    def read(content):
        head = events.ChainHead(1, canonical.digest(content), own)
        letter = letters.Letter(head, uri, content)
        return letters.read(uri, letter.key, letter.text)

    assert read(sound).content == sound
    with pytest.raises(errors.LedgerError, match="was changed"):
        read(sound | change)


def test_moves_of_others_are_no_direct_changes(name, on):
    with on("ann"):
        ledger.look([name])
        ledger.set_alias(name, "champion", "1")
    with on("ben"):
        assert ledger.look([name]) == []
        ledger.set_alias(name, "champion", "2")
    with on("ann"):
        moves = ledger.alias_changes(name, "champion")
        assert [(move.before, move.after, move.is_direct) for move in moves] == [
            (None, "1", False),
            ("1", "2", False),
        ]
        assert moves[-1].actor.startswith("ben@")
        aliases.point(name, "champion", "1")
        (direct,) = ledger.look([name])
        assert (direct.before, direct.after, direct.is_direct) == ("2", "1", True)


def test_what_was_taken_up_late_comes_before_what_happened_later(name, on):
    with on("ann"):
        ledger.set_alias(name, "champion", "1")
    held = tags(name)
    client = mlflow.MlflowClient()
    for key in held:
        client.delete_model_version_tag(name, "1", key)
    with on("ben"):
        ledger.set_alias(name, "champion", "2")
        for key, text in held.items():
            client.set_model_version_tag(name, "1", key, text)
        moves = ledger.alias_changes(name, "champion")
        assert [(move.before, move.after) for move in moves] == [(None, "1"), ("1", "2")]
        assert ledger.look([name]) == []


def test_who_has_the_turn_is_waited_for(name, on, monkeypatch):
    monkeypatch.setattr("mlflow_breadcrumbs.ledger.alias_moves.PATIENCE", 0.5)
    with on("ann"), turns.taken(name, "champion"), on("ben"):
        with pytest.raises(errors.PromotionError, match="is being moved by ann@"):
            ledger.set_alias(name, "champion", "2")
        ledger.set_alias(name, "candidate", "2")
        assert aliases.version_at(name, "champion") is None
    with on("ben"):
        ledger.set_alias(name, "champion", "2")
    assert not mlflow.MlflowClient().get_registered_model(name).tags


@pytest.mark.parametrize(
    "left",
    [
        '{"actor": "ann@here", "process": "", "time": "2026-03-03T14:00:05.000+00:00"}',
        '{"actor": "ann@here", "time": 1}',
        "nonsense",
    ],
)
def test_a_turn_that_was_left_behind_is_taken_away(name, on, left):
    with on("ann"):
        with turns.taken(name, "champion"):
            (key,) = mlflow.MlflowClient().get_registered_model(name).tags
        mlflow.MlflowClient().set_registered_model_tag(name, key, left)
        ledger.set_alias(name, "champion", "2")
    assert not mlflow.MlflowClient().get_registered_model(name).tags


def test_a_server_that_is_gone_leaves_the_history_readable(name, on, server):
    with on("ann"):
        approve(name)
        uri = stores.location()
    with on("ann", BREADCRUMBS_LEDGER_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"):
        zoos.use("http://127.0.0.1:1")
        assert told(name) == [("ann", "approval")]


def test_what_could_not_be_written_is_given_later(name, on, server):
    with on("ann"):
        uri = stores.location()
    with on("ann", BREADCRUMBS_LEDGER_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"):
        zoos.use("http://127.0.0.1:1")
        with pytest.raises(errors.UnreachableError, match="would be seen by nobody else"):
            sharing.check(version(name), "the approval")
        approve(name)
        zoos.use(server)
        assert not tags(name)
        ledger.sync()
        assert len(tags(name)) == 1


def test_who_only_looks_sees_what_others_wrote_and_writes_nothing(name, on, postgres_server):
    with on("ann"):
        details = {"weights_digest": digest(name)}
        ledger.note("approval", name, subject=version(name), details=details)

    def seen():
        page = [entry for found in catalog.tags(name) for entry in found]
        return [event.kind for event in reading.of_model(name, page).events]

    with on("bob"):
        assert seen() == seen() == ["approval"]
        assert ledger.head().sequence == 0
        ledger.history(name)  # takes it up
        assert seen() == ["approval"]
    ours = postgres.schema(postgres_server, f"looked_{uuid.uuid4().hex[:12]}")
    with on("bob", BREADCRUMBS_LEDGER_URI=ours):
        assert seen() == []
