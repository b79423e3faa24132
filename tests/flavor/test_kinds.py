"""What can be merged with what: models of many libraries, through the whole life of a version."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import versions

kinds = pytest.importorskip("kinds")

pytestmark = pytest.mark.slow


def run(*arguments):
    """A command's result as JSON."""
    result = CliRunner().invoke(cli.main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return json.loads(result.stdout)


def family(kind, folder):
    """A base and two fine-tuned versions in the registry; the models."""
    torch.manual_seed(1)
    base = kind.make().eval()
    kind.log("base", base, folder / "base")
    made = []
    for task in ("one", "two"):
        tuned = kind.make()
        tuned.load_state_dict(base.state_dict())
        tuned = kind.tune(tuned, folder / task)
        kinds.train(tuned, kind.answer)
        kind.log(task, tuned.eval(), folder / f"{task}-version")
        mlflow.MlflowClient().set_model_version_tag(task, "1", "breadcrumbs.task", task)
        made.append(tuned)
    return base, made


@pytest.mark.parametrize("name", kinds.KINDS)
def test_the_life_of_a_version(store, tmp_path, monkeypatch, name):
    """Merged, evaluated, promoted, verified, done again, loaded by its own library."""
    monkeypatch.chdir(tmp_path)
    if "sharded" in name:
        monkeypatch.setenv("MLFLOW_HUGGINGFACE_MODEL_MAX_SHARD_SIZE", "6KB")
    kind = kinds.KINDS[name]
    base, tuned = family(kind, tmp_path)
    tasks = []
    for task, model in zip(("one", "two"), tuned, strict=True):
        data = tmp_path / f"{task}.json"
        data.write_text(json.dumps({"kind": name, "labels": kinds.labels(kind, model)}))
        both = {"validation": data.name, "test": data.name}
        tasks.append({"name": task, "python": "kinds:score", "data": both})
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    (tmp_path / "policy.yaml").write_text("tasks: {one: {accuracy: 0}}\n")
    sources = ["--source", "one/1", "--source", "two/1"]
    measured = ["--evaluator", "own.yaml"]
    recipe = ["--method", "task_arithmetic", "--alpha", "0.5"]
    target = ["--registered-model", "merged", "--device", "cpu"]
    merged = run("merge", "--base", "base/1", *sources, *recipe, *target, *measured)
    assert merged["metrics"]["finetuned_accuracy/one"] == 1.0
    loaded = kind.load(here(merged["uri"], tmp_path / "loaded"))
    before = base.state_dict()
    wanted = [changed(base, model) for model in tuned]
    moved = 0
    for key, tensor in loaded.state_dict().items():
        change = sum(own[key] for own in wanted) / 2 if key in wanted[0] else 0
        if tensor.is_floating_point() and "running" not in key:
            torch.testing.assert_close(tensor, before[key] + change, atol=2e-6, rtol=0)
            moved += bool((tensor != before[key]).any())
        else:
            assert torch.equal(tensor, before[key])
    assert moved > 3
    assert run("evaluate", merged["uri"], *measured)["metrics"]
    decision = run(
        "promote", merged["uri"], "--alias", "champion", "--policy", "policy.yaml", *measured
    )
    assert decision["result"] == "promoted"
    assert run("verify", "merged@champion")["ok"]
    assert run("reproduce", "merged@champion")["identical"]
    again = run("merge", "--base", "base/1", *sources, *recipe, *target, *measured)
    assert again["reused"]
    pulled = run("pull", "merged@champion", tmp_path / "pulled")
    assert pulled["weights_digest"] == versions.resolve(merged["uri"]).recorded_digest


def here(uri, folder):
    """A copy of a version's artifacts."""
    mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    return folder


def changed(base, model):
    """What fine-tuning changed, tensor by tensor; an adapter is merged into its base first."""
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    before = base.state_dict()
    return {
        key: value - before[key]
        for key, value in whole.state_dict().items()
        if value.is_floating_point()
    }


def test_the_table_of_the_docs_is_what_is_tried():
    """Every kind has its line."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "text-models.md"
    section = page.read_text(encoding="utf-8").split("## What can be merged with what")[1]
    table = section.split("\n\n")[2]
    listed = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert listed == list(kinds.KINDS)
