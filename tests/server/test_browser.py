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


def opened(browser, shown_app, path, scheme="light", size="wide"):
    """A page that is drawn, and the list of what it complains about."""
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(shown_app.uri + path)
    if path.endswith("/lineage"):
        page.wait_for_selector("#graph[data-nodes]")
    return page, complaints


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "narrow")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_nobody_stumbles(browser, shown_app, name, scheme, size):
    page, complaints = opened(browser, shown_app, PAGES[name], scheme, size)
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(17, 23, 28)")
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert found["passes"]
    serious = {
        each["id"]: [node["html"] for node in each["nodes"]]
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    }
    assert serious == {}
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
