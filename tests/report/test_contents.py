"""The page of a merged version: what it says, that it stands alone, and what stops it."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import run_files
from mlflow_breadcrumbs.report import contents, page
from mlflow_breadcrumbs.search import study_records, sweep, workbench

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """Collects what a test looks at; refuses tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, content):
        super().__init__()
        self.open, self.texts, self.sources, self.ids, self.tags = [], [], [], [], set()
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.sources += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            assert values["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(self.texts)


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def merge(zoo, **changes):
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=1.0)
    request = flow.MergeRequest(
        zoo.base, zoo.sources, "merged", settings, tasks=zoo.tasks, device="cpu"
    )
    return flow.merge(flow.dataclasses.replace(request, **changes)).version


def files_of(run_id):
    return {entry.path for entry in mlflow.MlflowClient().list_artifacts(run_id)}


def test_the_page_says_all_and_stands_alone(zoo):
    version = merge(zoo)
    shown = run("report", version.uri, "--output", "report.html")
    assert shown.exit_code == 0, shown.output
    assert f"runs:/{version.run_id}/report.html" in shown.output
    content = Path("report.html").read_text(encoding="utf-8")
    found = Page(content)
    assert found.ids == ["accuracy", "recipe", "sources", "comparison", "savings", "lineage", "run"]
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & found.tags
    assert "url(" not in content
    assert "3 fine-tuned models became one." in found.text
    for words in (zoo.base, *zoo.sources, "colours", "tints", "hues", version.weights_digest):
        assert words in found.text
    metrics = mlflow.get_run(version.run_id).data.metrics
    for task in ("colours", "tints", "hues"):
        low, high = metrics[f"accuracy_low/{task}"], metrics[f"accuracy_high/{task}"]
        assert f"{low:.3f} to {high:.3f}" in found.text
    assert "Nothing in the weights speaks against merging" in found.text
    assert {"report.html", "comparison.json", "comparison.png"} <= files_of(version.run_id)

    again = contents.gather(version.uri)  # now the comparison comes from the run
    assert page.render(again).decode() == content
    assert again.savings.models == 3
    assert again.savings.served_before == 3 * again.savings.served_after
    assert again.savings.stored_after < again.savings.stored_before
    assert again.savings.evaluated_before == metrics["evaluation_seconds/sources"] > 0
    assert again.savings.evaluated_after == metrics["evaluation_seconds/merged"] > 0
    assert "time of an evaluation" in found.text


def test_a_password_in_what_is_told_is_masked(zoo):
    found = contents.gather(merge(zoo).uri)
    told = dataclasses.replace(found, uri="https://ann:hunter2@host/models?token=abc")
    written = page.render(told).decode()
    assert "hunter2" not in written
    assert "token=abc" not in written
    assert "https://***@host/models?token=***" in written


def test_pictures_of_studies_in_the_run_are_on_the_page(zoo):
    version = merge(zoo, tasks=None)
    png = contents.compare.compare(zoo.base, zoo.sources).picture()
    run_files.log_bytes(version.run_id, png, "sweep/density and alpha.png")
    run_files.log_bytes(version.run_id, png, "scaling/<b>.png")
    before = files_of(version.run_id)
    result = run("report", version.uri, "--output", "report.html", "--no-log", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["artifact"] is None
    assert files_of(version.run_id) == before
    found = Page(Path("report.html").read_text(encoding="utf-8"))
    assert [name for name in found.ids if name in contents.STUDIES] == ["sweep", "scaling"]
    assert {"density and alpha", "<b>"} <= set(found.texts)  # escaped, so it is text
    assert len(found.sources) == 3
    assert found.text.count(f"From the run that made this version, {version.run_id}.") == 2
    assert "merged without an evaluation" in found.text


def test_a_sweep_over_the_same_sources_is_on_the_page_and_one_over_others_is_not(zoo):
    swapped = (zoo.sources[1], zoo.sources[0], zoo.sources[2])
    for sources in (swapped, zoo.sources[:2]):
        materials = workbench.Materials(zoo.base, sources, zoo.tasks, device="cpu")
        last = sweep.sweep(sweep.SweepRequest(materials, (recipe.MergeRecipe(0.2, 0.0, 1.0),)))
    swept = study_records.find_study("sweep", zoo.base, zoo.sources)
    version = merge(zoo, tasks=None)
    found = contents.gather(version.uri)
    assert {study: shown.run_id for study, shown in found.studies.items()} == {"sweep": swept}
    said = Page(page.render(found).decode()).text
    assert f"From another run, of the same base and sources, {swept}." in said
    mlflow.delete_run(swept)
    assert study_records.find_study("sweep", zoo.base, zoo.sources[:2]) == last.run_id
    assert contents.gather("models:/merged/1").studies == {}


def test_a_sweep_over_more_sources_in_the_versions_own_run_is_not_on_its_page(zoo):
    with mlflow.start_run():
        version = merge(zoo, tasks=None)
        run_files.log_bytes(version.run_id, b"PNG", "sweep/alpha.png")
    assert list(contents.gather(version.uri).studies) == ["sweep"]
    mlflow.MlflowClient().log_param(version.run_id, "source.3", "models:/another/1")
    assert contents.gather(version.uri).studies == {}


def test_sources_that_are_gone_leave_the_rest_of_the_page(zoo):
    version = merge(zoo)
    mlflow.MlflowClient().delete_registered_model("tiny-hues")
    found = Page(page.render(contents.gather(version.uri)).decode())
    assert "The sources could not be compared: cannot resolve models:/tiny-hues/1" in found.text
    assert "savings" not in found.ids
    assert "source, missing" in found.text  # in the tree
    assert "accuracy" in found.ids


def test_a_run_that_is_gone_leaves_the_page_but_no_place_to_log_it(zoo):
    version = merge(zoo)
    mlflow.delete_run(version.run_id)
    refused = run("report", version.uri)
    assert refused.exit_code == 1
    assert "is gone, so the page can't be logged to it" in refused.stderr
    assert "--output FILE.html --no-log" in refused.stderr
    shown = run("report", version.uri, "--output", "report.html", "--no-log")
    assert shown.exit_code == 0, shown.output
    assert "accuracy" in Page(Path("report.html").read_text(encoding="utf-8")).ids


def test_what_is_no_merge_and_what_was_tampered_with_stops_it(zoo):
    with pytest.raises(errors.RegistryError, match="was not merged by this package"):
        contents.gather(zoo.base)
    version = merge(zoo, tasks=None)
    location = mlflow.MlflowClient().get_model_version_download_uri("merged", "1")
    file = Path(re.sub(r"^file://", "", location)) / "lineage.json"
    file.write_text(file.read_text().replace('"alpha":1', '"alpha":2'))
    with pytest.raises(
        errors.IntegrityError, match=r"lineage\.json of models:/merged/1 was changed"
    ):
        contents.gather(version.uri)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--no-log"], 2, "the page needs a place: --output FILE.html"),
        (["--output", "report.pdf"], 1, "is written as .html"),
        (["--output", "no/report.html"], 1, "its folder does not exist"),
    ],
)
def test_bad_input_is_one_message(zoo, arguments, code, words):
    result = run("report", zoo.base, *arguments)
    assert result.exit_code == code
    assert words in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_the_page(zoo, tmp_path):
    run("report", merge(zoo).uri, "--output", "report.html", "--no-log")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    drawn = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/profile", "--dump-dom",
         Path("report.html").absolute().as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "What it saves" in Page(drawn).text
