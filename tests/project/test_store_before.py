"""What the code before the rooms wrote is read, verified, merged and moved on as if written today.

`artifacts/store.tar.xz` is a registry that it made, `artifacts/store.json` what it said of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import mlflow
import open_clip
import pandas as pd
import pytest
import torch
import zoos
from click.testing import CliRunner
from mlflow.store.db import utils as databases

import mlflow_breadcrumbs
from mlflow_breadcrumbs import cli, flavor
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.registry import tag_keys, versions

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
SAID = json.loads((ARTIFACTS / "store.json").read_text(encoding="utf-8"))
ANSWERS = {" ".join(each["command"]): each for each in SAID["answers"]}
MERGED = ("models:/merged/1", "models:/merged/2", "models:/top/1", "models:/singular/1")
MERGED += ("models:/isotropic/1",)
CARRIES = "models:/tiny-hues/1"
"""The version that has the code that saved it."""


def run(*arguments, code=0, read=True):
    """The answer of a command of today."""
    done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (arguments, done.output, done.exception)
    return json.loads(done.stdout) if read and "--json" in arguments else done.stdout


def same(answer):
    """The answer itself."""
    return answer


def near(answer):
    """The answer, its numbers up to rounding."""
    if isinstance(answer, dict):
        return {key: near(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [near(value) for value in answer]
    return pytest.approx(answer, rel=1e-6, abs=1e-6) if isinstance(answer, float) else answer


def told(answer):
    """An answer of before with what later releases say otherwise on purpose, or no more."""
    if isinstance(answer, list):
        return [told(value) for value in answer]
    if not isinstance(answer, dict):
        return answer
    answer = {key: told(value) for key, value in answer.items() if key != "advice"}
    for key in {"because", "detail"} & answer.keys():  # times in sentences
        answer[key] = TIME.sub(r"\1T\2Z", answer[key])
    if "metrics" in answer and "groups" in answer:  # diff compares what both have, and no timings
        answer["metrics"] = [row for row in answer["metrics"] if is_compared(row)]
    return answer


def is_compared(row):
    """Whether `diff` still has the row of a metric as it was."""
    seconds = row["metric"].partition("/")[0].endswith(("seconds", "_per_second"))
    return None not in row.values() and not seconds and not row["metric"].startswith("average")


TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.\d+)?(?:\+00:00|Z)?")


def checks(*uri):
    """How the checks of versions came out."""
    answer = run("verify", *uri, "--json")
    found = answer.get("versions", [answer])
    return {check["status"] for version in found for check in version["checks"]}


def folder_of(uri):
    """Where a version's files lie."""
    return Path(versions.resolve(uri).location.removeprefix("file://"))


@pytest.fixture(scope="session")
def unpacked(once):
    """The store as it was left, in a folder of now; its files are shared: leave them be."""

    def unpack(folder):
        with tarfile.open(ARTIFACTS / "store.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        zoos.move_artifacts(folder / "mlflow.db", SAID["folder"], folder)
        engine = databases.create_sqlalchemy_engine(f"sqlite:///{folder}/mlflow.db")
        databases._upgrade_db(engine)  # as `mlflow db upgrade` does, where MLflow is newer
        engine.dispose()

    return once("before", unpack)


@pytest.fixture
def before(unpacked, tmp_path, monkeypatch):
    """Databases of this test's own, in use; commands find the task file and the policies."""
    for name in ("mlflow.db", zoos.LEDGER):
        shutil.copy(unpacked / name, tmp_path / name)
    monkeypatch.setenv("LOGNAME", "cleo")
    with zoos.working_in(unpacked, f"sqlite:///{tmp_path}/mlflow.db"):
        mlflow.set_experiment("Default")  # where all of it is; a sweep looks for its runs there
        yield unpacked


@pytest.mark.parametrize("question", ANSWERS)
def test_every_question_is_answered_as_before(before, question):
    asked = ANSWERS[question]
    answer = run(*asked["command"], code=asked["code"])
    if asked["command"][0] == "reproduce":
        assert answer.pop("seconds") >= 0
    if "--dry-run" in asked["command"]:
        assert answer.pop("would_measure") == []
        assert answer.pop("recorded") == []
    # Sums of squares are rounded in the order of the processor's lanes.
    alike = near if asked["command"][0] == "compare" else same
    assert told(answer) == alike(told(asked["answer"]))


def test_every_check_of_every_version_is_right(before):
    assert checks("--all") == {"ok"}


@pytest.mark.parametrize("row", SAID["recipes"], ids=lambda row: row["digest"][7:15])
def test_recipes_have_the_digests_of_before(row):
    made = recipe.MergeRecipe.from_method(row["method"], sources=row["sources"], **row["fields"])
    assert (made.to_json(), made.digest) == (row["json"], row["digest"])
    assert recipe.MergeRecipe.from_dict(json.loads(row["json"])).digest == row["digest"]


@pytest.mark.parametrize("uri", MERGED)
def test_the_lineage_in_a_version_is_read(before, uri):
    content = (folder_of(uri) / "lineage.json").read_bytes()
    statement.validate(content)
    found = statement.parse(content)
    tags = versions.resolve(uri).tags
    assert found.settings.digest == tags[tag_keys.RECIPE_DIGEST]
    assert found.settings.bit_exact == (uri in MERGED[:3])


def test_policies_have_the_digests_that_decisions_name(before):
    moves = run("history", "merged", "--alias", "champion", "--json")
    named = {move["policy_digest"] for move in moves} - {None}
    assert named == {policies.load("policy.yaml").digest}


@pytest.mark.parametrize("merge", SAID["merges"], ids=lambda merge: merge["answer"]["name"])
def test_a_merge_that_was_made_before_is_found(before, merge):
    named = {"--method", "--recipe"} & set(merge["command"])
    asked = merge["command"] + ([] if named else ["--method", "breadcrumbs"])  # the default then
    found = run(*asked)
    assert found["metrics"].items() >= merge["answer"]["metrics"].items()  # and what the run took
    assert found | {"metrics": None} == merge["answer"] | {"metrics": None, "reused": True}
    # Made anew, under another name, it has the same bits; decomposed, the same recipe.
    command = [word if word != merge["answer"]["name"] else "anew" for word in asked]
    anew = run(*command)
    assert not anew["reused"]
    assert anew["recipe_digest"] == merge["answer"]["recipe_digest"]
    if merge["answer"]["name"] in ("merged", "top"):
        assert anew["weights_digest"] == merge["answer"]["weights_digest"]
        assert anew["metrics"].items() >= merge["answer"]["metrics"].items()
    run("diff", merge["answer"]["uri"], "models:/anew/1", "--json")
    assert checks("models:/anew/1") == {"ok"}


def test_an_evaluation_counts_the_same_images(before):
    asked = SAID["evaluate"]
    answer = run(*asked["command"])
    for part in (answer, asked["answer"]):
        del part["run_id"]
        for task in part["tasks"]:
            del task["seconds"]
    assert answer == asked["answer"]


def test_a_sweep_goes_on_from_the_trials_of_before(before):
    asked = SAID["sweep"]
    answer = run(*asked["command"])
    assert answer == asked["answer"] | {"measured_now": 0}
    recipe_of_file = recipe.make(sources=3, file="best.yaml")
    assert recipe_of_file.digest == answer["recipe_digest"]


def test_a_registered_model_moves_on(before):
    """Its approvals hold, and its history goes on where it was."""
    champion = ("merged", "--alias", "champion")
    begun = run("history", *champion, "--json")
    assert [move["after"] for move in begun] == ["1", "2", "1"]
    run("promote", *champion, "--version", "2", "--policy", "strict.yaml", code=3)
    run("approve", "merged", "--version", "2", "--comment", "again")
    run("promote", *champion, "--version", "2", "--policy", "policy.yaml")
    run("recheck", "merged@champion", "--tasks", "tasks.yaml")
    run("rollback", *champion)
    history = run("history", *champion, "--json")
    assert history[: len(begun)] == begun
    assert [move["after"] for move in history] == ["1", "2", "1", "2", "1"]
    between = run("history", "merged", "--at", SAID["between"], "--json")
    answered = ANSWERS[f"history merged --at {SAID['between']} --json"]["answer"]
    assert between == told(answered)
    synced = run("ledger", "sync", "--full", "--json")
    assert (synced["added"], synced["removed"]) == (0, 0)
    assert run("watch", "--once", "--json", read=False) == ""  # no move is news
    assert run("ledger", "verify", "--json")["holds"]


def test_the_page_of_a_version(before, tmp_path):
    run("report", "models:/merged/1", "--no-log", "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert SAID["merges"][0]["answer"]["weights_digest"] in page
    blamed = run("blame", "models:/merged/1", "--task", "tints", "--tasks", "tasks.yaml", "--json")
    assert blamed["task"] == "tints"


@pytest.mark.parametrize("uri", ["models:/merged@champion", CARRIES])
def test_everyone_loads_a_version(before, uri, monkeypatch):
    """This package, open_clip alone, and MLflow, which takes this package as it is imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("BREADCRUMBS_IMAGE_ROOT", os.getcwd())
    ours = flavor.load_model(uri)
    recorded = versions.resolve(uri).tags[tag_keys.WEIGHTS_DIGEST]
    assert checkpoints.state_dict_digest(ours.model.state_dict()) == recorded
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder_of(uri)}")
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(theirs.eval().encode_image(pixels), ours.model.encode_image(pixels))
    pyfunc = mlflow.pyfunc.load_model(uri)
    assert isinstance(pyfunc.get_raw_model(), serving.OpenClipModel)
    task = sorted(ours.heads)[0]
    found = pyfunc.predict(pd.DataFrame({"image": ["images/red/0.png"], "task": [task]}))
    assert found["task"][0] == task


LOADING = """\
import json, sys
import mlflow, pandas
frame = pandas.read_json(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict(frame[["image"]])["label"].tolist()
import mlflow_breadcrumbs
done = mlflow.models.evaluate(
    model, frame, targets="label", model_type="classifier", evaluators="breadcrumbs"
)
print(json.dumps([mlflow_breadcrumbs.__file__, found, done.metrics["accuracy/hues"]]))
"""


def test_a_version_with_code_of_its_own_is_loaded_and_evaluated_with_it(
    before, tmp_path, monkeypatch
):
    """In a process that has not imported this package, MLflow puts the version's code first.

    MLflow then looks for our evaluator by today's entry point, and finds it in the code of before.
    """
    project = Path(mlflow_breadcrumbs.__file__).parents[1]
    listed = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
    installed = tmp_path / "installed" / "mlflow_breadcrumbs-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Name: mlflow-breadcrumbs\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in entries.items())
            for group, entries in listed.items()
        )
    )
    colours = [("red", "images/red/0.png"), ("green", "images/green/0.png")]
    frame = pd.DataFrame(colours, columns=["label", "image"])
    frame.to_json(tmp_path / "frame.json")
    monkeypatch.setenv("BREADCRUMBS_IMAGE_ROOT", os.getcwd())
    ours = flavor.load_model(CARRIES)
    wanted = mlflow.pyfunc.load_model(CARRIES).predict(frame)["label"].tolist()
    command = [sys.executable, "-W", "ignore", "-c", LOADING, str(folder_of(CARRIES))]
    done = subprocess.run(
        [*command, str(tmp_path / "frame.json")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed.parent), str(project)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, found, accuracy = json.loads(done.stdout.splitlines()[-1])
    assert Path(file) == folder_of(CARRIES) / "code/mlflow_breadcrumbs/__init__.py"
    assert found == wanted
    assert set(ours.heads) == {"hues"}
    right = [label == colour for label, (colour, _) in zip(found, colours, strict=True)]
    assert accuracy == sum(right) / len(right)
