"""`pull`: a version as the folder that its own library loads."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import versions


def pull(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ["pull", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_open_clip_loads_what_was_pulled(family, tmp_path):
    folder = tmp_path / "new" / "clip"
    said = json.loads(pull(family.merged, folder, "--json").stdout)
    assert said["loaded"] == "open_clip"
    assert said["recorded"]
    assert said["weights_digest"] == versions.resolve(family.merged).recorded_digest
    assert {"open_clip_config.json", "open_clip_model.safetensors", "lineage.json"} <= set(
        said["files"]
    )
    assert not {"MLmodel", "conda.yaml"} & set(said["files"])
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert sum(parameter.numel() for parameter in model.parameters())
    assert [path.name for path in folder.parent.iterdir()] == ["clip"]
    refused = pull(family.merged, folder, code=1)
    assert "exists and is no empty folder; name another" in refused.output
    text = pull(family.merged, tmp_path / "unloaded", "--no-load").stdout
    assert "loaded by" not in text


def test_bytes_that_were_changed_are_not_taken(family, tmp_path):
    file = family.file(family.merged)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused = pull(family.merged, tmp_path / "clip", code=1)
    assert "were changed after they were registered" in refused.output
    assert not list(tmp_path.glob("*clip*"))


@pytest.mark.slow
def test_transformers_loads_what_was_pulled(store, tmp_path, monkeypatch):
    """Weights and tokenizer side by side; several files stay several."""
    transformers = pytest.importorskip("transformers")
    import berts

    monkeypatch.setenv("MLFLOW_HUGGINGFACE_MODEL_MAX_SHARD_SIZE", "6KB")
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(berts.config())
    berts.register("bert", model, tmp_path)
    folder = tmp_path / "pulled"
    folder.mkdir()
    said = json.loads(pull("bert/1", folder, "--json").stdout)
    assert said["loaded"] == "transformers"
    assert not said["recorded"]
    names = set(said["files"])
    assert {"config.json", "model.safetensors.index.json", "tokenizer_config.json"} <= names
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w1 w2")["input_ids"]
    root = Path(versions.resolve("models:/bert/1").location.removeprefix("file://"))
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2}
    (root / "model" / "config.json").write_text(json.dumps(config))
    refused = pull("bert/1", tmp_path / "damaged", code=1)
    assert "of the tensors of models:/bert/1 missing or of another shape" in refused.output
    assert not (tmp_path / "damaged").exists()


def small_qwen(**settings):
    """A small Qwen2."""
    import transformers

    known = {
        "vocab_size": 24,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**known | settings)).eval()


@pytest.mark.slow
def test_a_task_s_configuration_says_what_its_weights_are(store, tmp_path):
    """The base ties its output, the source wrote an identical one; other dtypes on both sides."""
    transformers = pytest.importorskip("transformers")
    import berts

    from mlflow_breadcrumbs.engine import recipe
    from mlflow_breadcrumbs.pipeline import flow

    torch.manual_seed(0)
    base = small_qwen(tie_word_embeddings=True).to(torch.bfloat16)
    tuned = small_qwen(tie_word_embeddings=False)
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in (tuned.model.embed_tokens.weight, tuned.model.norm.weight):
            parameter += 0.015625
        tuned.lm_head.weight.copy_(tuned.model.embed_tokens.weight)
    for name, model in (("qwen", base), ("qwen-tuned", tuned)):
        berts.register(name, model, tmp_path, "text-generation")
    for dtype, loaded_as in (("base", torch.bfloat16), ("float32", torch.float32)):
        settings = recipe.MergeRecipe.from_method(
            "task_arithmetic", sources=1, alpha=1, own=("model.norm.weight",), dtype=dtype
        )
        merged = flow.merge(
            flow.MergeRequest(
                base="models:/qwen/1",
                sources=("models:/qwen-tuned/1",),
                registered_model=f"merged-{dtype}",
                recipe=settings,
                device="cpu",
            )
        )
        for task in ((), ("--task", "qwen-tuned")):
            folder = tmp_path / f"{dtype}{len(task)}"
            pull(merged.version.uri, folder, *task)
            config = json.loads((folder / "config.json").read_text())
            assert config["tie_word_embeddings"] is True
            assert config["dtype"] == str(loaded_as).removeprefix("torch.")
            loaded, told = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", output_loading_info=True
            )
            assert not told["missing_keys"]
            assert loaded.dtype == loaded_as
            assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
            torch.testing.assert_close(
                loaded.lm_head.weight.float(), tuned.lm_head.weight, atol=1e-3, rtol=0.01
            )
            of = tuned if task else base
            assert torch.equal(loaded.model.norm.weight, of.model.norm.weight.to(loaded_as))
    settings = recipe.MergeRecipe.from_method(
        "task_arithmetic", sources=1, alpha=0.25, own=("lm_head.weight",)
    )
    flow.merge(
        flow.MergeRequest(
            base="models:/qwen/1",
            sources=("models:/qwen-tuned/1",),
            registered_model="kept",
            recipe=settings,
            device="cpu",
        )
    )
    folder = tmp_path / "kept"
    pull("models:/kept/1", folder, "--task", "qwen-tuned")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.config.tie_word_embeddings is False
    assert torch.equal(loaded.lm_head.weight, tuned.lm_head.weight.to(torch.bfloat16))
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
