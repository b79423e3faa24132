"""Clients and servers of two releases: it works, or one message says what is lacking."""

import contextlib
import json
import threading

import flask
import pytest
import requests
import zoos
from werkzeug import serving

CHAMPION = {"name": "merged", "alias": "champion"}
LATER = ("requests", "recalls", "configuration_digest", "since", "restart_due")
"""Of guard.json, what the first release that guarded did not say."""


@contextlib.contextmanager
def older(uri, *absent):
    """A server of that release, in front of another: it lacks some requests and fields; its URI."""
    front = flask.Flask("older")
    front.url_map.merge_slashes = False

    @front.route("/", defaults={"path": ""})
    @front.route("/<path:path>", methods=["GET", "POST", "PATCH", "DELETE"])
    def forward(path):
        asked = flask.request
        if path in absent:
            return "<p>Not Found</p>", 404
        if path == "breadcrumbs/rollback" and "expected" in asked.json:
            return {"error": "the request is refused: expected", "kind": "GuardError"}, 400
        given = {"params": asked.args, "data": asked.get_data(), "timeout": 600}
        kinds = {"Content-Type": asked.content_type} if asked.content_type else {}
        found = requests.request(asked.method, f"{uri}/{path}", headers=kinds, **given)
        content = found.content
        if path == "breadcrumbs/guard.json":
            content = json.dumps({k: v for k, v in found.json().items() if k not in LATER})
        return flask.Response(
            content, found.status_code, content_type=found.headers["Content-Type"]
        )

    running = serving.make_server("127.0.0.1", 0, front, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()


def test_this_client_at_an_older_server(guarded, second, run):
    with older(guarded.uri, "breadcrumbs/recall") as uri:
        zoos.use(uri)
        said = run("promote", f"merged/{second}", "--alias", "champion")
        assert f"models:/merged/{second} is champion now" in said
        refused = run("recall", "merged/1", "--reason", "bad", code=1)
        assert f"the server {uri} has no /breadcrumbs/recall: its release of" in refused
        assert "Upgrade it there, or use that release here" in refused
        back = ("rollback", "merged", "--alias", "champion")
        refused = run(*back, "--expect-current", second, code=1)
        assert "has no /breadcrumbs/rollback with `expected`" in refused
        assert guarded.champion == second
        assert "is back at version 1" in run(*back)


def test_a_request_that_a_server_lacks(guarded, run):
    with older(guarded.uri, "breadcrumbs/approve") as uri:
        zoos.use(uri)
        assert "has no /breadcrumbs/approve" in run("approve", "merged/1", user="dora", code=1)


@pytest.mark.parametrize(
    ("what", "fields", "known"),
    [
        (
            "promote",
            CHAMPION | {"version": "1", "dry_run": True},
            "name alias version result before policy_digest weights_digest sentence run_id "
            "would_measure recorded rules",
        ),
        (
            "rollback",
            CHAMPION | {"to": "1", "expected": "7"},
            "name alias before after skipped sentence moved",
        ),
        (
            "approve",
            {"name": "merged", "version": "1", "user": "dora"},
            "uri weights_digest person withdrawn event standing",
        ),
        (
            "recall",
            {"name": "many", "version": "1", "reason": "bad"},
            "uri weights_digest reason withdrawn event affected aliases live",
        ),
    ],
)
def test_an_older_client_understands_the_answers(guarded, what, fields, known):
    """It takes every field for one of its own records': none may be added, none left out."""
    answer = guarded.request(what, fields)
    assert answer.status == 200, answer.text
    assert set(answer.json) == set(known.split())
    if what in ("approve", "recall"):
        gone = fields | {"withdraw": True}
        assert guarded.request(what, gone).status == 200
