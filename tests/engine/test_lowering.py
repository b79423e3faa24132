"""One LoRA adapter of a merged change: as peft makes it of the base, in float64."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import adapters, checkpoints, files, lowering, recipe

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
berts = pytest.importorskip("berts")

SUM = recipe.MergeRecipe(density=1.0, gamma=0.0, alpha=1.0)


def gpt():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16,
            n_layer=1,
            n_head=2,
            vocab_size=40,
            n_positions=12,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
        )
    )


MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(berts.config()),
    "transposed layers": gpt,
    "other names in memory": vit,
}


LEFT_OUT = {"other names in memory": {"cls_token", "position_embeddings"}}
"""What is no layer's weight."""


def saved(folder, name="bert", seed=1, only=""):
    """A base, and a source of it whose tensors differ; their paths."""
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder / "base")
    state = load_file(folder / "base" / "model.safetensors")
    torch.manual_seed(seed)
    for key, tensor in state.items():
        if only in key and tensor.is_floating_point():
            state[key] = tensor + 0.02 * torch.randn_like(tensor)
    save_file(state, folder / f"source-{seed}.safetensors")
    return folder / "base", folder / f"source-{seed}.safetensors"


def expected(before, after, rank, made):
    """Base plus the change of each tensor as the adapter should have it, in float64."""
    found = {}
    for key, tensor in before.items():
        change = after[key].double() - tensor.double()
        if key in made.left_out:
            change = torch.zeros_like(change)
        elif change.dim() > 1 and key not in made.whole:
            left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
            change = (left[:, :rank] * values[:rank] @ right[:rank]).reshape(change.shape)
        found[key] = tensor.double() + change
    return found


def loaded(base, folder):
    """What peft makes of the base with an adapter, in float64."""
    kind = getattr(transformers, json.loads((base / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(base, dtype=torch.float64)
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    merged.save_pretrained(folder.with_name("merged"))  # with the names of the file
    return load_file(folder.with_name("merged") / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_peft_makes_of_it_the_base_and_the_change_of_that_rank(tmp_path, name):
    base, source = saved(tmp_path, name)
    result = files.merge_as_adapter(base, [source], SUM, tmp_path / "adapter", 3)
    made, before = result.adapter, load_file(base / "model.safetensors")
    assert 0.05 < made.energy_kept < 0.9
    assert {key.rpartition(".")[2] for key in made.left_out} == LEFT_OUT.get(name, set())
    tied = any("is tied to the embedding" in note for note in made.notes)
    assert tied == (name == "transposed layers")
    ours = loaded(base, tmp_path / "adapter")
    total = kept = 0.0
    for key, tensor in expected(before, load_file(source), 3, made).items():
        change = tensor - before[key].double()
        assert (ours[key] - tensor).norm() <= 1e-6 * change.norm(), key
        kept += float(change.square().sum())
        total += float((load_file(source)[key].double() - before[key].double()).square().sum())
    assert made.energy_kept == pytest.approx(kept / total, abs=1e-5)
    shares = made.groups.values()
    assert sum(share for share, _ in shares) == pytest.approx(1)
    assert sum(share * own for share, own in shares) == pytest.approx(made.energy_kept)
    with (
        checkpoints.Checkpoint.open(base) as first,
        adapters.open_on(first, tmp_path / "adapter") as view,
    ):
        assert checkpoints.weights_digest(view) == result.weights_digest
        for key in first.names:
            torch.testing.assert_close(view.tensor(key).double(), ours[key], rtol=0, atol=1e-6)


def test_of_the_full_rank_it_keeps_everything_and_has_the_same_bits_again(tmp_path):
    base, source = saved(tmp_path)
    made = [
        files.merge_as_adapter(base, [source], SUM, tmp_path / name, 60, threads=threads).adapter
        for name, threads in (("one", 1), ("two", 2))
    ]
    assert made[0].energy_kept == pytest.approx(1, abs=1e-12)
    assert made[0].file_digest == made[1].file_digest
    for key, tensor in loaded(base, tmp_path / "one").items():
        torch.testing.assert_close(tensor, load_file(source)[key].double(), rtol=0, atol=1e-7)


def test_it_is_a_source_of_the_next_merge(tmp_path):
    base, source = saved(tmp_path)
    files.merge_as_adapter(base, [source], SUM, tmp_path / "adapter", 60)
    again = files.merge_files(base, [tmp_path / "adapter"], SUM, tmp_path / "again.safetensors")
    for key, tensor in load_file(again.output).items():
        torch.testing.assert_close(tensor, load_file(source)[key], rtol=0, atol=1e-6)


def test_what_no_adapter_can_have_is_left_out_and_said(tmp_path):
    """A tensor that is no layer's weight."""
    base, source = saved(tmp_path)
    for path in (base / "model.safetensors", source):
        state = load_file(path)
        torch.manual_seed(len(state))
        state["bert.token"] = torch.randn(1, 4) * (2 if path == source else 1)
        save_file(state, path)
    result = files.merge_as_adapter(base, [source], SUM, tmp_path / "adapter", 60)
    (share,) = result.adapter.left_out.values()
    assert result.adapter.energy_kept == pytest.approx(1 - share)
    assert "bert.token changed too" in result.notes[-1]
    assert "it is left out" in result.notes[-1]
    only = tmp_path / "only"
    only.mkdir()
    base, source = saved(only, only="LayerNorm")
    with pytest.raises(errors.MergeError, match="no matrix that an adapter can change differs"):
        files.merge_as_adapter(base, [source], SUM, only / "adapter", 3)
    assert not (only / "adapter").exists()


def run(*words, code=0):
    result = CliRunner().invoke(cli.main, ["merge-files", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command(tmp_path):
    base, source = saved(tmp_path)
    words = ["--base", base, "--source", source, "--method", "task_arithmetic", "--alpha", 1]
    words += ["--as-adapter", 4, "--output", tmp_path / "adapter"]
    found = json.loads(run(*words, "--json").stdout)
    assert found["output"] == found["adapter"]["folder"] == str(tmp_path / "adapter")
    assert found["adapter"]["rank"] == 4
    assert 0 < found["adapter"]["energy_kept"] < 1
    assert {"group", "share", "energy_kept"} == set(found["adapter"]["groups"][0])
    assert "exists already; name another folder" in run(*words, code=1).output
    said = run(*words, "--overwrite").stdout
    assert f"the adapter of rank 4 keeps {found['adapter']['energy_kept']:.1%} of" in said
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (
        *(4, 4),
        str(base),
    )


def test_options_and_folders_that_do_not_go_together(tmp_path):
    base, source = saved(tmp_path)
    words = ["--base", base, "--source", source, "--as-adapter", 4]
    refused = run(*words, "--output", tmp_path / "a", "--max-shard-size", "5GB", code=2)
    assert "--as-adapter goes with neither --executor ray nor --max-shard-size" in refused.output
    run(*words[:-1], 0, "--output", tmp_path / "a", code=2)
    refused = run(*words, "--output", base, code=1)
    assert "which goes into the merge; an adapter needs a folder of its own" in refused.output
    refused = run(*words, "--output", "s3://models/adapter", code=1)
    assert "is an address, and an adapter is written to a disk" in refused.output
    shutil.copy(source, tmp_path / "file")
    assert (
        "is a file, and an adapter is a folder"
        in run(*words, "--output", tmp_path / "file", code=1).output
    )
    with pytest.raises(errors.MergeError, match="the rank of an adapter is 0"):
        lowering.check_rank(0)
    assert not (tmp_path / "a").exists()
