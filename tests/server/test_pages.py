"""What every page says, as HTML and as JSON, and what nobody can make it say."""

import datetime
import html.parser
import json
import re
import time
import urllib.parse

import apps
import jsonschema
import mlflow
import pytest
import registered

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.server import alias_page, model_page, visibility

MERGED = apps.version("merged", 1)
QUOTED = urllib.parse.quote(apps.NAMED, safe="")
REQUESTS = {"/promote", "/rollback", "/approve", "/override", "/recall"}
PAGES = {
    "/": "/breadcrumbs/",
    "/models/{name}": "/breadcrumbs/models/merged",
    "/models/{name}/aliases": "/breadcrumbs/models/merged/aliases?at=2026-01-01",
    "/models/{name}/versions/{number}": MERGED,
    "/models/{name}/versions/{number}/lineage": f"{MERGED}/lineage",
    "/compare": "/breadcrumbs/compare?one=merged/1&other=top@direct",
}
"""An address of each page, by how OpenAPI has it."""
OTHERS = (
    f"/breadcrumbs/models/{QUOTED}",
    f"/breadcrumbs/models/{QUOTED}/versions/1",
    f"/breadcrumbs/models/{QUOTED}/versions/1/lineage",
    f"/breadcrumbs/models/{QUOTED}/aliases",
    apps.version("child", 1),
    apps.version("child", 1, "/lineage"),
    apps.version("tiny-colours", 1),
    "/breadcrumbs/models/top",
    "/breadcrumbs/models/top/aliases",
    f"/breadcrumbs/compare?one={QUOTED}/1&other=child/1",
    f"/breadcrumbs/compare?one={urllib.parse.quote(apps.HOSTILE)}&other=x",
    f"/breadcrumbs/models/merged/aliases?at={urllib.parse.quote(apps.HOSTILE)}",
    f"/breadcrumbs/?most={urllib.parse.quote(apps.HOSTILE)}",
    f"/breadcrumbs/models/{urllib.parse.quote(apps.HOSTILE, safe='')}",
)


class Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, and all of its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_json_as_openapi_says(shown_app, path):
    document = shown_app.ask("/breadcrumbs/openapi.json").json
    answers = document["paths"][path]["get"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"] | {
        "components": document["components"]
    }
    found = shown_app.ask(PAGES[path], as_json=True)
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    jsonschema.Draft202012Validator(schema).validate(found.json)
    page = shown_app.ask(PAGES[path])
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_openapi_names_every_address(shown_app):
    document = shown_app.ask("/breadcrumbs/openapi.json").json
    named = {*PAGES, "/models/{name}/versions/{number}/exports/{form}", "/guard.json"}
    named |= {"/recalls.json"}
    assert set(document["paths"]) == named | REQUESTS
    assert all("post" in document["paths"][path] for path in REQUESTS)
    assert document["openapi"].startswith("3.1")


@pytest.mark.parametrize("path", [*PAGES.values(), *OTHERS])
def test_what_people_type_is_text_and_nothing_is_inline(shown_app, path):
    answer = shown_app.ask(path)
    assert answer.status in (200, 400, 404)
    elements = Elements(answer.text)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"img", "style", "iframe", "object", "base"}
    for tag, attributes in elements.found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert not attributes.get("href", "").lower().startswith(("javascript:", "http", "//"))
        if tag == "script":
            assert attributes["src"].startswith("/breadcrumbs/static/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_what_people_typed_is_shown(shown_app):
    version = Elements(shown_app.ask(MERGED).text).text
    assert version.count(apps.HOSTILE) >= 4  # description, tag, who approved, with which comment
    named = Elements(shown_app.ask(f"/breadcrumbs/models/{QUOTED}").text).text
    assert apps.NAMED in named
    assert apps.HOSTILE in named  # the tags of kind and tasks


def test_a_description_has_its_lines(shown_app):
    found = Elements(shown_app.ask(apps.version("tiny-hues", 1)).text).text
    assert "for hues.\n\nNext:\n" in found
    assert "\\n" not in found


def test_numbers_are_those_that_people_read(shown_app):
    found = shown_app.ask("/breadcrumbs/compare?one=merged/1&other=top/1").text
    assert re.search(r"merge_bytes</th><td class=\"number\">[1-9],[0-9]{3},[0-9]{3}</td>", found)


def test_links_lead_to_pages(shown_app):
    seen, waiting = set(), ["/breadcrumbs/"]
    while waiting:
        path = waiting.pop()
        if path in seen or re.search(r"/many/|/static/|/exports/", path):
            continue
        seen.add(path)
        answer = shown_app.ask(path)
        assert answer.status == 200, (path, answer.text)
        found = [values["href"] for tag, values in Elements(answer.text).found if tag == "a"]
        waiting += [link for link in found if link.startswith("/breadcrumbs/")]
    assert len(seen) > 25


def test_a_version_tells_its_whole_story(shown_app):
    found = shown_app.ask(MERGED, as_json=True).json
    assert [each["role"] for each in found["inputs"]] == ["base", "source", "source"]
    assert [each["weight"] for each in found["inputs"]] == [None, 1, 0.5]
    assert found["inputs"][1]["licence"] is None  # it was named after the merge
    assert {row["task"] for row in found["evaluation"]} == {"colours", "tints"}
    assert {"accuracy_low", "finetuned_accuracy", "zero_shot_accuracy"} < set(
        found["evaluation"][0]
    )
    results = {each["alias"]: each["result"] for each in found["decisions"]}
    assert results == {"champion": "promoted", "best": "refused"}
    refused = next(each for each in found["decisions"] if each["alias"] == "best")
    assert {rule["name"]: rule["verdict"] for rule in refused["rules"]} == {
        "weights": "passed",
        "average_accuracy": "failed",
    }
    assert found["approvals"][0]["comment"] == f"looks good {apps.HOSTILE}"
    assert found["verification"]["ok"]
    assert found["recipe"]["sentence"].startswith("2 fine-tuned versions of one base became one")
    assert found["faults"] == []
    assert found["signed"] is False


def test_exports_are_those_of_the_command(shown_app, furnished):
    for form in ("slsa", "cyclonedx", "prov"):
        found = shown_app.ask(f"{MERGED}/exports/{form}")
        assert found.status == 200
        assert found.headers["content-disposition"].startswith("attachment")
        assert found.text == shown_app.ask(f"{MERGED}/exports/{form}").text
        assert isinstance(json.loads(found.text), dict)
    kept = next(furnished.rglob("lineage.json"))
    exports = [shown_app.ask(apps.version(name, 1, "/exports/slsa")) for name in ("merged", "top")]
    assert kept.read_text() in {each.text for each in exports}
    assert shown_app.ask(f"{MERGED}/exports/pickle").status == 404


def test_the_graph_goes_to_any_depth_both_ways(shown_app):
    found = shown_app.ask(f"{MERGED}/lineage", as_json=True).json
    columns = {node["uri"]: node["column"] for node in found["nodes"]}
    assert columns["models:/merged/1"] == 0
    assert columns["models:/tiny/1"] == -1
    assert columns["models:/top/1"] == 1
    assert columns["models:/child/1"] == 2
    aliases = {node["uri"]: node["aliases"] for node in found["nodes"]}
    assert aliases["models:/top/1"] == ["direct", "unnoticed"]
    places = [(node["column"], node["row"]) for node in found["nodes"]]
    assert len(set(places)) == len(places)
    ids = {node["id"] for node in found["nodes"]}
    assert {edge["child"] for edge in found["edges"]} | {
        edge["parent"] for edge in found["edges"]
    } <= ids


def test_what_needs_attention(shown_app):
    merged = shown_app.ask("/breadcrumbs/models/merged", as_json=True).json["attention"]
    assert [each["kind"] for each in merged] == ["refused"]
    for _ in range(200):  # until the server's first look
        top = shown_app.ask("/breadcrumbs/models/top", as_json=True).json["attention"]
        if "no event" not in json.dumps(top):
            break
        time.sleep(0.1)
    direct = sorted(each["text"] for each in top if each["kind"] == "direct")
    assert direct[0].startswith("@direct was set to 1 directly in MLflow, noticed by sync")
    assert direct[1].startswith("@unnoticed was set to 1 directly in MLflow, noticed by server")
    child = shown_app.ask("/breadcrumbs/models/child", as_json=True).json["attention"]
    said = {each["kind"]: each["text"] for each in child}
    assert said["drift"].startswith("Version 1 no longer keeps the policy that @champion")
    assert said["unverified"] == "Version 1 is not what was registered: weights."
    found = shown_app.ask(apps.version("child", 1), as_json=True).json["verification"]
    assert (found["ok"], found["failed"]) == (False, {"weights": "changed"})
    nothing = shown_app.ask("/breadcrumbs/models/grandchild", as_json=True).json
    assert (nothing["aliases"], nothing["attention"]) == ({}, [])


def test_an_alias_that_was_moved_and_nobody_has_told(store):
    """A look of the server tells it later."""
    client = mlflow.MlflowClient()
    registered.version("m")
    client.set_registered_model_alias("m", "first", "1")
    everything = visibility.everything()
    ledger.look()
    client.set_registered_model_alias("m", "champion", "1")
    (found,) = model_page.gather("m", everything, most=1).attention
    assert found.kind == "direct"
    assert found.text.startswith("@champion points at version 1; no event")
    assert alias_page.gather("m", None, everything).unnoticed == ("champion",)


def test_what_was_live_then(shown_app):
    path = "/breadcrumbs/models/merged/aliases"
    moves = shown_app.ask(path, as_json=True).json["moves"]
    assert [(move["alias"], move["after"]) for move in moves] == [("champion", "1")]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    asked = shown_app.ask(f"{path}?at={now}", as_json=True).json["standings"][0]
    assert (asked["possible"], asked["certain"]) == (["1"], True)
    assert asked["decision"] == moves[0]["decision"]
    before = shown_app.ask(f"{path}?at=2020-01-01", as_json=True).json["standings"][0]
    assert (before["version"], before["certain"]) == (None, False)
    assert shown_app.ask(f"{path}?at=2999-01-01").status == 400
    assert shown_app.ask(f"{path}?at=yesterday", as_json=True).json["error"].startswith("'yest")


def test_what_is_not_there(shown_app):
    for path in (
        "/breadcrumbs/models/nobody",
        "/breadcrumbs/models/nobody/aliases",
        apps.version("merged", 9),
        apps.version("merged", 9, "/lineage"),
        apps.version("nobody", 1),
        "/breadcrumbs/compare?one=merged/1&other=merged/9",
        apps.version("tiny", 1, "/exports/png"),
    ):
        for as_json in (False, True):
            assert shown_app.ask(path, as_json=as_json).status == 404, path
    assert shown_app.ask("/breadcrumbs/compare?one=merged/1&other=%2F%2F").status == 400
    assert shown_app.ask("/breadcrumbs/?most=0").status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed(shown_app, method):
    assert shown_app.ask("/breadcrumbs/models/merged", method=method).status == 405


def test_lists_are_as_long_as_asked(shown_app):
    found = shown_app.ask("/breadcrumbs/?most=5", as_json=True).json
    assert (len(found["versions"]), found["more"], len(found["models"])) == (5, True, 5)
    many = shown_app.ask("/breadcrumbs/models/many?most=5", as_json=True).json
    assert [each["number"] for each in many["versions"]] == [20, 19, 18, 17, 16]
    assert many["more"]
