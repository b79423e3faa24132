"""LoRA adapters as sources: what `peft` makes of them, in float64, and by transformers."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import adapters, checkpoints, files, recipe
from mlflow_breadcrumbs.engine.shards import finishing, plans, working

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SUM = recipe.MergeRecipe(density=1.0, gamma=0.0, alpha=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small BERT in its library's own layout."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=60,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def adapter(base, folder, seed, model_class="BertForSequenceClassification", **settings):
    """An adapter that was trained a little; its folder, and the model that it makes."""
    torch.manual_seed(seed)
    model = getattr(transformers, model_class).from_pretrained(base)
    known = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**known | settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(folder)
    return folder


def deltas(base, folder, model_class="BertForSequenceClassification"):
    """Per tensor, what peft adds to the base, in float64."""
    model = getattr(transformers, model_class).from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return {name: tensor - before[name] for name, tensor in merged.state_dict().items()}


SETTINGS = {
    "plain": {},
    "patterns": {
        "rank_pattern": {"layer.0.attention.self.query": 2},
        "alpha_pattern": {"value": 3, "^bert.encoder.layer.1.attention.self.query": 5},
    },
    "rank-stabilized": {"use_rslora": True, "r": 3},
    "a head of its own": {"task_type": "SEQ_CLS"},
    "embeddings and all": {"target_modules": ["word_embeddings", "dense", "key"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_an_adapter_makes_of_its_base(base, tmp_path, name):
    folder = adapter(base, tmp_path / "a", 1, **SETTINGS[name])
    expected = deltas(base, folder)
    changed = 0
    with checkpoints.Checkpoint.open(base) as opened, adapters.open_on(opened, folder) as view:
        assert view.names == opened.names
        for tensor in opened.names:
            ours = view.tensor(tensor).double() - opened.tensor(tensor).double()
            size = expected[tensor].norm()
            assert (ours - expected[tensor]).norm() <= 1e-6 * max(float(size), 1e-9), tensor
            changed += bool(size)
    assert changed >= 4


def test_a_transposed_layer_and_a_convolution(tmp_path):
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    gpt = tmp_path / "gpt"
    transformers.GPT2LMHeadModel(config).save_pretrained(gpt)
    own = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    folder = adapter(gpt, tmp_path / "a", 1, "GPT2LMHeadModel", **own)
    expected = deltas(gpt, folder, "GPT2LMHeadModel")["transformer.h.0.attn.c_attn.weight"]
    with checkpoints.Checkpoint.open(gpt) as opened, adapters.open_on(opened, folder) as view:
        name = "transformer.h.0.attn.c_attn.weight"
        name = name if name in opened else name.removeprefix("transformer.")
        ours = view.tensor(name).double() - opened.tensor(name).double()
        assert (ours - expected).norm() <= 1e-6 * expected.norm()
    vit = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(vit)
    name = "vit.embeddings.patch_embeddings.projection.weight"
    folder = adapter(
        vit, tmp_path / "v", 2, "ViTForImageClassification", target_modules=["projection"]
    )
    expected = deltas(vit, folder, "ViTForImageClassification")[name]
    with checkpoints.Checkpoint.open(vit) as opened, adapters.open_on(opened, folder) as view:
        ours = view.tensor(name).double() - opened.tensor(name).double()
        assert (ours - expected).norm() <= 1e-6 * expected.norm()


def test_adapters_of_other_ranks_and_a_full_model_are_merged(base, tmp_path):
    """Against float64; and the result loads in transformers, since it is laid out as its base."""
    one = adapter(base, tmp_path / "one", 1)
    two = adapter(base, tmp_path / "two", 2, r=7, target_modules=["key", "dense"])
    full = tmp_path / "full"
    shutil.copytree(base, full)
    torch.manual_seed(3)
    state = {
        name: tensor + 0.02 * torch.randn_like(tensor)
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(state, full / "model.safetensors", {"format": "pt"})
    output = tmp_path / "merged" / "model.safetensors"
    shutil.copytree(base, output.parent)
    result = files.merge_files(base, [one, two, full], SUM, output, verify=True, overwrite=True)
    assert len(set(result.source_digests)) == 3
    before = load_file(base / "model.safetensors")
    all_deltas = [deltas(base, folder) for folder in (one, two)]
    all_deltas.append({name: state[name].double() - before[name].double() for name in state})
    merged = transformers.BertForSequenceClassification.from_pretrained(output.parent).state_dict()
    for name, tensor in merged.items():
        expected = sum(delta[name] for delta in all_deltas)
        ours = tensor.double() - before[name].double()
        assert (ours - expected).norm() <= 1e-6 * max(float(expected.norm()), 1e-9), name


def test_masks_shards_and_workers_see_the_same_adapter(base, tmp_path):
    folders = [adapter(base, tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    made = recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.5)
    whole = files.merge_files(base, folders, made, tmp_path / "whole.safetensors", verify=True)
    with checkpoints.Checkpoint.open(base) as opened:
        views = [adapters.open_on(opened, folder) for folder in folders]
        plan = plans.make(opened, views, made, tmp_path / "o.safetensors", max_shard_size=40_000)
    assert len(plan.shards) > 2
    plan = plans.parse(json.loads(json.dumps(plan.to_dict())), "plan")
    list(working.work_all(plan, range(1, len(plan.shards) + 1)))
    result = finishing.finish(plan)
    assert result.weights_digest == whole.weights_digest
    assert result.source_digests == whole.source_digests


def test_adapters_in_an_object_store_are_read_there_by_workers_too(base, object_store, tmp_path):
    folders = [adapter(base, tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    made = recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.5)
    whole = files.merge_files(base, folders, made, tmp_path / "whole.safetensors", verify=True)
    place = f"s3://models/{tmp_path.name}"
    for folder in (base, *folders):
        for file in folder.iterdir():
            object_store.put(file, f"{tmp_path.name}/{folder.name}")
    addresses = [f"{place}/a1", f"{place}/a2/{adapters.WEIGHTS}"]
    for number, first in enumerate((base, f"{place}/{base.name}")):
        output = tmp_path / f"out-{number}.safetensors"
        again = files.merge_files(first, addresses, made, output, verify=True)
        assert again.weights_digest == whole.weights_digest
        assert again.source_digests == whole.source_digests
        with contextlib.ExitStack() as stack:
            opened, *views = adapters.open_all(stack, [first, *addresses])
            plan = plans.make(
                opened, views, made, tmp_path / f"o-{number}.safetensors", max_shard_size=40_000
            )
        assert [s.path for s in plan.sources] == [
            f"{place}/a{n}/{adapters.WEIGHTS}" for n in (1, 2)
        ]
        plan = plans.parse(json.loads(json.dumps(plan.to_dict())), "plan")
        list(working.work_all(plan, range(1, len(plan.shards) + 1)))
        assert finishing.finish(plan).weights_digest == whole.weights_digest
    twice = [addresses[0], f"{addresses[0]}/{adapters.WEIGHTS}"]
    with pytest.raises(errors.MergeError, match="is given twice"):
        files.merge_files(base, twice, made, tmp_path / "twice.safetensors")


def test_a_small_change_of_a_coarse_base_is_kept(base, tmp_path):
    """A base in bfloat16: W' is float32, so that the adapter's change is not rounded with it."""
    coarse = tmp_path / "coarse"
    shutil.copytree(base, coarse)
    state = load_file(base / "model.safetensors")
    save_file({n: t.to(torch.bfloat16) for n, t in state.items()}, coarse / "model.safetensors")
    folder = adapter(base, tmp_path / "a", 1)
    with checkpoints.Checkpoint.open(coarse) as opened, adapters.open_on(opened, folder) as view:
        name = "bert.encoder.layer.0.attention.self.query.weight"
        assert view.info(name).dtype == torch.float32
        expected = deltas(base, folder)[name]
        ours = view.tensor(name).double() - opened.tensor(name).double()
        assert (ours - expected).norm() <= 1e-6 * expected.norm()


def changed(folder, **settings):
    file = folder / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "is of the kind IA3; plain LoRA can be merged"),
        ({"use_dora": True}, "is LoRA with use_dora; plain"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4, which changes the base"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "more than names"),
        ({"lora_alpha": None}, "has the lora_alpha None: no number"),
    ],
)
def test_other_kinds_are_refused_by_name(base, tmp_path, settings, words):
    folder = changed(adapter(base, tmp_path / "a", 1), **settings)
    with pytest.raises(errors.CheckpointError, match=words.replace("(", r"\(")):
        files.merge_files(base, [folder], SUM, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_adapter_of_another_base_is_refused_in_a_few_words(base, tmp_path):
    folder = adapter(base, tmp_path / "a", 1)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, other)
    with pytest.raises(errors.CheckpointError, match=r"and \d+ more\. Name the base that it was"):
        files.merge_files(other, [folder], SUM, tmp_path / "out.safetensors")
    state = load_file(base / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(state | {name: torch.zeros(5, 32)}, other)
    with pytest.raises(errors.CheckpointError, match=r"which has \[5, 32\] in the base"):
        files.merge_files(other, [folder], SUM, tmp_path / "out.safetensors")
    weights = load_file(folder / adapters.WEIGHTS)
    weights.pop(next(key for key in weights if "lora_A" in key))
    save_file(weights, folder / adapters.WEIGHTS)
    with pytest.raises(errors.CheckpointError, match="one of the two factors"):
        files.merge_files(base, [folder], SUM, tmp_path / "out.safetensors")


def test_the_order_of_arithmetic(tmp_path):
    """As the module's first lines say, to the bit."""
    generator = torch.Generator().manual_seed(5)
    w, a, b = (torch.randn(*shape, generator=generator) for shape in ((37, 53), (6, 53), (37, 6)))
    save_file({"x.weight": w}, tmp_path / "base.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b},
        folder / adapters.WEIGHTS,
    )
    (folder / adapters.CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 7}))
    total = np.zeros((37, 53), np.float32)
    for k in range(6):
        total += b[:, k : k + 1].numpy() * a[k : k + 1].numpy()
    expected = w.numpy() + np.float32(7 / 6) * total
    with checkpoints.Checkpoint.open(tmp_path / "base.safetensors") as opened:
        view = adapters.open_on(opened, folder)
        assert (view.tensor("x.weight").numpy() == expected).all()
        digest = checkpoints.weights_digest(view)
    save_file({"x.weight": torch.from_numpy(expected)}, tmp_path / "full.safetensors")
    assert checkpoints.weights_digest(tmp_path / "full.safetensors") == digest
