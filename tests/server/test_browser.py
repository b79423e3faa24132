"""The pages in a real browser: light and dark, narrow and wide, by keyboard, and for axe-core.

axe-core, which comes with `axe-playwright-python`, says what people with a screen reader would
stumble over.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apps
import pytest
import server_accounts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = {"wide": (1200, 900), "narrow": (390, 800)}
MERGED = apps.version("merged", 1)
PAGES = {
    "start": "/breadcrumbs/",
    "model": "/breadcrumbs/models/top",
    "aliases": "/breadcrumbs/models/merged/aliases?at=2026-01-01",
    "version": MERGED,
    "lineage": f"{MERGED}/lineage",
    "compare": "/breadcrumbs/compare?one=merged/1&other=top/1",
}
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `screenshots`")
axe = pytest.importorskip("axe_playwright_python")
AXE = Path(axe.__file__).with_name("axe.min.js")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, shown_app, path, scheme="light", size="wide", **options):
    """A page that is drawn, and the list of what it complains about."""
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    page = browser.new_context(viewport=viewport, color_scheme=scheme, **options).new_page()
    page.set_default_timeout(120_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("requestfailed", lambda request: complaints.extend(failed(request)))
    page.goto(shown_app.uri + path)
    if path.endswith("/lineage"):
        page.wait_for_selector("#graph[data-nodes]")
    return page, complaints


def failed(request):
    """The address of what can't be loaded; what a page doesn't wait for that is left can be."""
    return [] if request.failure == "net::ERR_ABORTED" else [request.url]


def stumbles(page):
    """What axe-core finds serious: the elements of each rule."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert found["passes"]
    return {
        each["id"]: [node["html"] for node in each["nodes"]]
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    }


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "narrow")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_nobody_stumbles(browser, shown_app, name, scheme, size):
    page, complaints = opened(browser, shown_app, PAGES[name], scheme, size)
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(17, 23, 28)")
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
    assert stumbles(page) == {}
    page.context.close()


def test_the_graph_by_keyboard(browser, shown_app):
    page, complaints = opened(browser, shown_app, PAGES["lineage"])
    asked = shown_app.ask(PAGES["lineage"], as_json=True).json
    assert page.get_attribute("#graph", "data-nodes") == str(len(asked["nodes"]))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.focus("#graph")
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("status").inner_text().startswith("tiny-")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("status").inner_text() == "merged/1: merge, colours, tints, @champion"
    page.keyboard.press("+")
    page.keyboard.press("0")
    page.fill("#wanted", "@unnoticed")
    assert page.get_by_role("status").inner_text() == "1 found"
    page.focus("#graph")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url("**/models/tiny*/versions/1")
    assert complaints == []
    page.context.close()


def test_a_click_in_the_graph_names_the_version(browser, shown_app):
    page, complaints = opened(browser, shown_app, apps.version("tiny-hues", 1, "/lineage"))
    box = page.locator("#graph").bounding_box()
    page.emulate_media(color_scheme="dark")  # is drawn anew
    for share in range(5, 100, 3):
        page.mouse.click(box["x"] + box["width"] * share / 100, box["y"] + box["height"] / 2)
        if page.get_by_role("status").inner_text().startswith("tiny-hues/1"):
            break
    assert page.get_by_role("status").get_by_role("link").inner_text() == "tiny-hues/1"
    assert complaints == []
    page.context.close()


def test_forms_ask_by_address(browser, shown_app):
    page, _ = opened(browser, shown_app, "/breadcrumbs/compare")
    page.get_by_label("One").fill("merged/1")
    page.get_by_label("Other").fill("top@direct")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?one=merged%2F1&other=top%40direct")
    assert page.get_by_role("columnheader", name="top/1").count() > 0
    page.goto(f"{shown_app.uri}/breadcrumbs/models/merged/aliases")
    page.get_by_label("Time (UTC)").fill("2026-01-01")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("nothing is known before").wait_for()
    page.context.close()


RECALL, WITHDRAW = "Mark as recalled …", "Withdraw the recall …"
VERSION = {"name": "merged", "version": "1"}


def button(page, name):
    return page.get_by_role("button", name=name)


def focused(page):
    """The words of what has the keyboard."""
    return page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent")


def fault(page):
    """What the dialog says is wrong; an alert that says nothing isn't there for anybody."""
    return page.locator("#recall-fault").text_content()


def nodes(guarded):
    """Of the lineage of the merged version."""
    return guarded.ask(PAGES["lineage"], as_json=True).json["nodes"]


def marks(guarded):
    """What the lineage says of recalls, by version."""
    return {node["uri"]: node["recall"] for node in nodes(guarded)}


def made_from(guarded):
    """What descends from the merged version."""
    return [node["uri"] for node in nodes(guarded) if node["column"] > 0]


@pytest.fixture
def unrecalled(guarded):
    """A server that takes recalls; its merged version is in use again afterwards."""
    yield guarded
    if guarded.ask(MERGED, as_json=True).json["recalled"]:
        assert guarded.request("recall", VERSION | {"withdraw": True}).status == 200


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "narrow")])
def test_recalled_and_withdrawn_by_keyboard(browser, unrecalled, scheme, size):
    page, complaints = opened(browser, unrecalled, MERGED, scheme, size)
    button(page, RECALL).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Recall merged/1")
    count = len(made_from(unrecalled))
    dialog.get_by_text(f"{count} versions were made from it").wait_for()
    assert "Live now: merged/1 @champion" in dialog.inner_text()
    assert "child/1 @champion" in dialog.get_by_role("listitem").all_inner_texts()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert stumbles(page) == {}
    page.keyboard.press("Escape")
    assert (dialog.count(), focused(page)) == (0, RECALL)
    page.keyboard.press("Enter")
    page.keyboard.type(f"test images {apps.HOSTILE}")
    page.keyboard.press("Tab")
    page.keyboard.type("dora")
    page.keyboard.press("Enter")
    button(page, WITHDRAW).wait_for()
    assert focused(page) == "Recall"
    said = page.get_by_role("group", name="Recall").inner_text()
    assert "recalled by dora@" in said
    assert f": test images {apps.HOSTILE}" in said
    below = page.get_by_role("region", name="Made from it").get_by_role("listitem")
    assert below.nth(0).inner_text() == "child/1 @champion"
    assert below.count() == count
    assert stumbles(page) == {}
    found = marks(unrecalled)
    assert (found["models:/merged/1"], found["models:/child/1"]) == ("recalled", "suspect")
    page.goto(unrecalled.uri + PAGES["lineage"])
    button(page, WITHDRAW).focus()
    page.keyboard.press("Enter")
    page.get_by_label("Your name").focus()
    page.keyboard.type("dora")
    page.keyboard.press("Enter")
    button(page, RECALL).wait_for()
    assert set(marks(unrecalled).values()) == {""}
    assert complaints == []
    page.context.close()


def test_the_servers_refusal_is_in_the_dialog(browser, unrecalled):
    page, _ = opened(browser, unrecalled, MERGED)
    button(page, RECALL).click()
    button(page, "Recall it").click()
    assert fault(page) == ""  # the browser asks for what is missing
    page.get_by_label("Reason").fill("  ")
    page.get_by_label("Your name").fill("dora")
    button(page, "Recall it").click()
    page.get_by_text("the reason of a recall has 2 characters").wait_for()
    button(page, "Cancel").click()
    assert focused(page) == RECALL
    button(page, RECALL).click()
    assert fault(page) == ""
    assert set(marks(unrecalled).values()) == {""}
    page.context.close()


def test_no_button_without_a_script_or_a_server_that_takes_recalls(browser, guarded, shown_app):
    for app, options in ((guarded, {"java_script_enabled": False}), (shown_app, {})):
        page, complaints = opened(browser, app, MERGED, **options)
        page.wait_for_load_state("networkidle")
        assert page.get_by_role("heading", level=1).inner_text() == "merged/1 @champion"
        assert button(page, RECALL).count() == 0
        assert complaints == []
        page.context.close()


def account(name):
    return {"username": name, "password": server_accounts.password(name)}


def test_who_may_not_edit_has_no_button(browser, accounts):
    page, _ = opened(browser, accounts, MERGED, http_credentials=account("eve"))
    page.wait_for_load_state("networkidle")
    assert button(page, RECALL).count() == 0
    page.context.close()


def test_a_right_that_was_taken_and_a_login_that_has_expired(browser, accounts):
    page, _ = opened(browser, accounts, MERGED, http_credentials=account("cleo"))
    button(page, RECALL).click()
    assert not page.get_by_label("Your name").is_visible()
    page.get_by_label("Reason").fill("bad")
    with server_accounts.admin(accounts.uri) as client:
        client.revoke_user_permission("cleo", "registered_model", "merged")
        button(page, "Recall it").click()
        page.get_by_text("needs the permission EDIT of the model").wait_for()
        client.grant_user_permission("cleo", "registered_model", "merged", "EDIT")
        client.update_user_password("cleo", "another password")
        try:
            button(page, "Recall it").click()
            page.get_by_text("your login may have expired").wait_for()
        finally:
            client.update_user_password("cleo", server_accounts.password("cleo"))
    button(page, "Recall it").click()
    button(page, WITHDRAW).click()
    button(page, "Withdraw the recall").last.click()
    button(page, RECALL).wait_for()
    page.context.close()
