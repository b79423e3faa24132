"""Versions of another flavor, measured by the user's own means, over a real store."""

import json
import shutil
import sys

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import versions

transformers = pytest.importorskip("transformers")

import texts  # noqa: E402 - it needs transformers

pytestmark = pytest.mark.slow

POLICY = """
average_normalized_accuracy: 0.3
tasks: {fruit: {accuracy: 0.2}}
metrics: {loss/place: {threshold: 3, greater_is_better: false}}
no_regression: {margin: 0.5}
evidence: {in_ledger: true}
"""


@pytest.fixture(scope="session")
def made(once, empty_database):
    """A base and two fine-tuned classifiers, made once."""
    import zoos

    def make(folder):
        shutil.copy(empty_database, folder / "mlflow.db")
        with zoos.working_in(folder):
            mlflow.set_experiment("test")
            texts.register(folder)

    return once("texts", make)


@pytest.fixture
def bert(made, store, tmp_path):
    """A copy of it that a test may add to; the URIs."""
    import zoos

    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    zoos.move_artifacts(tmp_path / "mlflow.db", made, tmp_path)
    (tmp_path / "scores.py").write_text(texts.SCORES)
    (tmp_path / "evaluators.yaml").write_text(texts.EVALUATORS)
    (tmp_path / "policy.yaml").write_text(POLICY)
    sys.modules.pop("scores", None)
    yield ("models:/bert/1", *(f"models:/bert-{task}/1" for task in texts.SOURCES))
    sys.modules.pop("scores", None)


def run(*arguments, code=0):
    done = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def merge(bert, *more, evaluator="evaluators.yaml", alpha=0.7, code=0):
    base, *sources = bert
    words = [
        "merge",
        "--base",
        base,
        "--sources",
        ",".join(sources),
        "--registered-model",
        "merged",
    ]
    words += ["--evaluator", evaluator, "--method", "task_arithmetic", "--alpha", alpha, "--json"]
    return run(*words, *more, code=code)


def metrics(done):
    return json.loads(done.stdout)["metrics"]


def registered():
    return {model.name for model in mlflow.MlflowClient().search_registered_models()}


def test_merge_evaluate_and_promote_on_what_was_measured(bert):
    merged = metrics(merge(bert))
    assert set(merged) == {
        *("average_normalized_accuracy", "normalized_accuracy/fruit", "normalized_accuracy/place"),
        *("accuracy/fruit", "accuracy_low/fruit", "accuracy_high/fruit"),
        *("finetuned_accuracy/fruit", "zero_shot_accuracy/fruit"),
        *("loss/place", "finetuned_loss/place", "zero_shot_loss/place"),
    }
    # Less is better: what is kept of a loss is the source's, divided by the merged one's.
    kept = merged["finetuned_loss/place"] / merged["loss/place"]
    assert merged["normalized_accuracy/place"] == kept
    assert merged["zero_shot_loss/place"] > merged["finetuned_loss/place"]
    kept = merged["accuracy/fruit"] / merged["finetuned_accuracy/fruit"]
    assert merged["normalized_accuracy/fruit"] == pytest.approx(kept)
    assert versions.resolve("models:/merged/1").tasks == ("fruit", "place")

    again = json.loads(
        run("evaluate", "merged/1", "--evaluator", "evaluators.yaml", "--json").stdout
    )
    assert again["metrics"]["loss/place"] == merged["loss/place"]
    rows = {row["task"]: row for row in again["tasks"]}
    assert rows["fruit"]["total"] == 30
    assert rows["fruit"]["dataset_digest"].startswith("sha256:")
    assert rows["place"]["range"] == [0, None]
    assert rows["place"]["evaluator"] == "scores:loss"
    assert mlflow.get_run(again["run_id"]).data.metrics["loss/place"] == merged["loss/place"]

    first = run("promote", "merged/1", "--alias", "champion", "--policy", "policy.yaml", "--json")
    assert json.loads(first.stdout)["result"] == "promoted"
    merge(bert, alpha=0.5)
    second = run("promote", "merged/2", "--alias", "champion", "--policy", "policy.yaml", "--json")
    rules = {rule["name"]: rule for rule in json.loads(second.stdout)["rules"]}
    assert "there is no interval to judge by" in rules["no_regression/place"]["sentence"]
    assert "interval)" in rules["no_regression/fruit"]["sentence"]
    held = run("recheck", "merged@champion", "--evaluator", "evaluators.yaml", "--json")
    drifts = {row["task"]: row for row in json.loads(held.stdout)["drift"]}
    assert (drifts["place"]["drift"], drifts["place"]["drift_low"]) == (0, None)
    assert drifts["fruit"]["drift_low"] < 0
    assert json.loads(run("verify", "merged/2", "--json").stdout)["ok"]
    for form in ("slsa", "model-card", "cyclonedx", "prov", "openlineage"):
        run("export", "merged/1", "--format", form)
    assert "place (loss)" in run("export", "merged/1", "--format", "model-card").stdout
    run("report", "merged/1")


def test_a_typed_metric_is_refused_and_one_that_mlflow_computed_through_us_counts(bert, tmp_path):
    run(
        *("merge", "--base", bert[0], "--sources", ",".join(bert[1:])),
        *("--registered-model", "merged", "--method", "task_arithmetic"),
    )
    policy = tmp_path / "f1.yaml"
    policy.write_text("metrics: {f1/fruit: {threshold: 0.1, greater_is_better: true}}")
    digest = versions.resolve("models:/merged/1").recorded_digest
    with mlflow.start_run(tags={"breadcrumbs.weights_digest": digest}):
        mlflow.log_metric("f1/fruit", 0.99)
    words = ("promote", "merged/1", "--alias", "champion", "--policy", policy)
    (rule,) = json.loads(run(*words, "--json", code=3).stdout)["rules"][1:]
    assert rule["verdict"] == "unknown"
    assert "anybody may have typed into it" in rule["sentence"]
    rows = [f"{text},LABEL_{label}" for text, label in texts.examples("fruit", 30, 1)]
    (tmp_path / "named.csv").write_text("\n".join(["text,kind", *rows]) + "\n")
    (tmp_path / "f1.evaluators.yaml").write_text(
        "tasks:\n"
        "  - name: fruit\n"
        "    metric: f1\n"
        "    mlflow: {metric: f1_score, targets: kind, predictions: label, "
        "model_type: classifier}\n"
        "    data: named.csv\n"
    )
    done = run(*words, "--evaluator", "f1.evaluators.yaml", "--json")
    decision = json.loads(done.stdout)
    (found,) = [rule for rule in decision["rules"] if rule["name"] == "metric f1/fruit"]
    assert found["verdict"] == "passed"
    assert 0.1 <= found["value"] < 0.99


def test_mlflows_scorers_measure_offline(bert, tmp_path):
    rows = [
        {"inputs": {"text": text}, "expectations": {"label": f"LABEL_{label}"}}
        for text, label in texts.examples("fruit", 6, 1)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "own_scorers.py").write_text(
        "def exact(outputs, expectations):\n    return outputs['label'] == expectations['label']\n"
    )
    (tmp_path / "genai.yaml").write_text(
        "tasks:\n"
        "  - name: fruit\n"
        "    genai: {metric: exact/mean, scorers: ['own_scorers:exact']}\n"
        "    data: rows.json\n"
    )
    done = json.loads(run("evaluate", bert[1], "--evaluator", "genai.yaml", "--json").stdout)
    assert done["tasks"][0]["total"] == 6
    assert 0 < done["metrics"]["accuracy/fruit"] <= 1


def test_a_function_that_names_its_tasks_and_sources_that_name_none(bert, tmp_path):
    for task in texts.SOURCES:
        mlflow.MlflowClient().delete_model_version_tag(f"bert-{task}", "1", "breadcrumbs.task")
    found = metrics(merge(bert, evaluator="scores:everything"))
    best = {task: found[f"finetuned_loss/{task}-loss"] for task in texts.SOURCES}
    for task, source in zip(texts.SOURCES, bert[1:], strict=True):
        said = run("evaluate", source, "--evaluator", "scores:everything", "--json")
        assert json.loads(said.stdout)["metrics"][f"loss/{task}-loss"] == best[task]
    assert "average_accuracy" not in found


def test_a_program_without_a_shell(bert, warm_process, tmp_path):
    named = f"cmd:{warm_process.commands / 'python'} scores.py {{model}} fruit-test.csv"
    done = run("evaluate", bert[1], "--evaluator", named, "--json")
    found = json.loads(done.stdout)
    assert found["tasks"][0]["total"] == 30
    assert found["tasks"][0]["evaluator"].startswith("cmd: ")
    marker = tmp_path / "made"
    run("evaluate", bert[1], "--evaluator", f"{named}; touch {marker}", code=1)
    assert not marker.exists()


def test_sweep_scaling_blame_and_the_choice(bert):
    sources = ("--base", bert[0], "--sources", ",".join(bert[1:]))
    own = ("--evaluator", "evaluators.yaml")
    words = ("--method", "task_arithmetic", "--alpha", "0.3,0.6", "--registered-model", "swept")
    swept = json.loads(run("sweep", *sources, *own, *words, "--no-robustness", "--json").stdout)
    assert len(swept["trials"]) == 2
    assert swept["validation"]["loss/place"] != swept["test"]["loss/place"]
    best = max(swept["trials"], key=lambda row: row["average_normalized_accuracy"])
    assert best["recipe_digest"] == swept["recipe_digest"]
    assert swept["version"]["uri"] == "models:/swept/1"
    words = ("--smallest", "1", "--methods", "task_arithmetic", "--alpha", "0.6")
    run("scaling", *sources, *own, *words)
    blamed = run("blame", "swept/1", "--task", "place", *own, "--finalists", 0, "--json")
    suspects = json.loads(blamed.stdout)["suspects"]
    gains = {row["left_out"]: row["gain"] for row in suspects if row["kind"] == "source"}
    assert gains[bert[2]] < 0  # without its own source the loss is larger
    chosen = run(
        *("merge", *sources, *own, "--choose", "--registered-model", "chosen", "--json"),
    )
    tried = json.loads(chosen.stdout)["choice"]["measured"]["tried"]
    assert {row["images"] for row in tried} == {None}
    assert "recipes on the validation data: as many merges" in chosen.stderr
    leaky = run("sweep", *sources, "--evaluator", "scores:accuracy", "--alpha", 0.3, code=1)
    assert "does not tell validation from test" in leaky.output
    few = run("scaling", *sources, *own, "--smallest", "1", "--images", 3, code=1)
    assert "measures on all of its data" in few.output


SCRIPTS = {
    "failed with exit code 3: no model here": "import sys; sys.exit('no model here') or 1",
    "printed nothing": "pass",
    "is not JSON": "print('accuracy 0.5')",
    "NaN is no number in JSON": "print('{\"accuracy\": NaN}')",
    "says that accuracy is 1.5, outside its range 0 to 1": "print(1.5)",
    "was ended after 1 seconds": "import time; time.sleep(60)",
    "printed more than 1,048,576 bytes": "print('x' * 2_000_000)",
    "gave no accuracy for the task fruit; it gave f1": "print('{\"f1\": 0.5}')",
    "which is no whole number": 'print(\'{"accuracy": 0.55, "n": 10}\')',
    "says that n is 0": 'print(\'{"accuracy": 0.55, "n": 0}\')',
    "gets none of 4 images right": 'print(\'{"accuracy": 0, "n": 4}\')',
}


@pytest.mark.parametrize("words", SCRIPTS)
def test_an_evaluator_that_gives_no_result_registers_nothing(bert, tmp_path, words):
    script = SCRIPTS[words].replace("sys.exit('no model here') or 1", FAILS)
    command = json.dumps([sys.executable, "-c", script, "{model}"])
    (tmp_path / "bad.yaml").write_text(
        f"tasks:\n  - {{name: fruit, command: {command}, seconds: 1}}\n"
    )
    before = registered()
    done = merge(bert, evaluator="bad.yaml", code=1)
    assert words in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert registered() == before
    assert run("evaluate", bert[1], "--evaluator", "bad.yaml", code=FINE.get(words, 1))


FAILS = "print('no model here', file=sys.stderr); sys.exit(3)"
FINE = {"gets none of 4 images right": 0}
"""A version that is measured by itself is divided by nothing."""


def test_a_function_that_fails_says_where(bert, tmp_path):
    (tmp_path / "scores.py").write_text(
        "def broken(folder):\n    raise RuntimeError('out of luck')\n"
        "def infinite(folder):\n    return {'f1': float('inf')}\n"
    )
    before = registered()
    done = merge(bert, evaluator="scores:broken", code=1)
    assert (
        "scores:broken failed on models:/bert/1: RuntimeError: out of luck (scores.py, line 2)"
        in (done.stderr)
    )
    done = merge(bert, evaluator="scores:infinite", code=1)
    assert "says that f1 is inf, which is no finite number" in done.stderr
    assert registered() == before


def test_a_version_that_changed_is_not_measured(bert):
    resolved = versions.resolve(bert[1])
    merge(bert)
    merged = versions.resolve("models:/merged/1")
    with versions.workspace() as folder:
        opened = versions.open_version(resolved, folder)
        target = versions.open_version(merged, folder)
        shutil.copyfile(opened.weights, target.weights)
    done = run("evaluate", "merged/1", "--evaluator", "evaluators.yaml", code=1)
    assert "were changed after they were registered" in done.stderr


def test_an_open_clip_version_by_ones_own_evaluator(zoo, tmp_path):
    (tmp_path / "own_score.py").write_text(
        "import pathlib\n"
        "def parts(folder):\n"
        "    names = [each.stem for each in pathlib.Path(folder).glob('tasks/*.json')]\n"
        "    return {'heads': {'metric': 'heads', 'value': 1 + len(names), 'range': [0, None]}}\n"
    )
    base, *sources = (zoo.base, *zoo.sources[:2])
    done = run(
        *("merge", "--base", base, "--sources", ",".join(sources), "--registered-model", "owned"),
        *("--evaluator", "own_score:parts", "--json"),
    )
    found = json.loads(done.stdout)["metrics"]
    assert found["heads/heads"] > found["finetuned_heads/heads"] - 1
    assert found["heads/heads"] >= 3  # the heads of both sources are there
