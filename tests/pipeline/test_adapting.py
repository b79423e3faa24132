"""A merge whose change is kept as one LoRA adapter, too: run, lineage and metrics."""

import json

import mlflow
import pytest
import torch
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.audit import reproduce, verify
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.registry import versions

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
berts = pytest.importorskip("berts")

pytestmark = pytest.mark.slow


def merge(*more, code=0):
    words = ["merge", "--base", "bert/1", "--source", "bert-1/1", "--source", "bert-2/1"]
    words += ["--registered-model", "merged", "--method", "task_arithmetic", "--alpha", "1"]
    result = CliRunner().invoke(cli.main, [*words, *map(str, more)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def registered(store, tmp_path):
    """A small BERT and two changes of it, as versions; the base as its library has it."""
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(berts.config())
    berts.register("bert", base, tmp_path)
    for number in (1, 2):
        model = transformers.BertForSequenceClassification(berts.config())
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        berts.register(f"bert-{number}", model, tmp_path)
    return base


def test_the_run_has_the_adapter_and_the_version_stays_whole(registered, tmp_path):
    made = json.loads(merge("--as-adapter", 25, "--json").stdout)
    told = made["adapter"]
    assert (told["rank"], made["reused"]) == (25, False)
    assert told["energy_kept"] == pytest.approx(1)
    metrics = mlflow.get_run(made["run_id"]).data.metrics
    assert metrics["adapter_energy_kept"] == told["energy_kept"]
    assert len([name for name in metrics if name.startswith("adapter_energy_kept/")]) == len(
        told["groups"]
    )
    folder = mlflow.artifacts.download_artifacts(
        run_id=made["run_id"], artifact_path="adapter", dst_path=str(tmp_path)
    )
    resolved = versions.resolve(made["uri"])
    stated = contents.read_statement(resolved)[1]
    (named,) = (
        entry
        for entry in stated.content["predicate"]["runDetails"]["byproducts"]
        if entry["name"] == "adapter"
    )
    digest = checkpoints.file_digest(f"{folder}/adapter_model.safetensors")
    assert f"sha256:{named['digest']['sha256']}" == digest
    assert named["annotations"]["rank"] == stated.adapter_rank == 25
    assert f"sha256:{named['digest']['weightsSha256']}" == told["weights_digest"]
    whole = mlflow.transformers.load_model(made["uri"], return_type="components")["model"]
    ours = peft.PeftModel.from_pretrained(registered, folder).merge_and_unload().state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert verify.verify(made["uri"]).ok
    assert reproduce.reproduce(made["uri"]).identical


def test_a_merge_that_exists_without_it_says_so(registered):
    first = json.loads(merge("--json").stdout)
    assert "adapter" not in first
    again = json.loads(merge("--as-adapter", 2, "--json").stdout)
    assert (again["reused"], again["uri"]) == (True, first["uri"])
    words = "was merged without --as-adapter 2; with --force it is merged again"
    assert again["notes"] == [f"{first['uri']} {words}"]
    said = merge("--as-adapter", 2, "--force").stdout
    assert "the adapter of rank 2 keeps" in said
    kept = json.loads(merge("--as-adapter", 2, "--json").stdout)
    assert (kept["reused"], kept["version"], kept.get("notes")) == (True, "2", None)
