"""Sources that are not quite as their base: patterns, prefixes, tied outputs, heads of their own.

The oracle is the merge of checkpoints that were aligned by hand; its bits must be the same.
"""

import json
import os

import berts
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, drafts, files, recipe
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.shards import finishing, plans, working

SETTINGS = recipe.MergeRecipe(density=0.5, gamma=0.1, alpha=0.7)
SUM = recipe.MergeRecipe(density=1)
OTHERS = {
    "DistilBert": {"vocab_size": 25, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2},
    "ViT": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 8,
    },
}
"""Small models that are no BERTs."""


def save(folder, model, states=None):
    """A model's folder, with other tensors where they are given."""
    model.save_pretrained(folder)
    if states is not None:
        save_file({n: t.contiguous() for n, t in states.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def tuned(model, seed):
    """The model with every tensor changed a little."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


def classifier(labels, seed=None, **settings):
    """A small BERT with a head, its backbone from seed 0; changed by another seed."""
    torch.manual_seed(0)
    base = transformers.BertForPreTraining(berts.config())
    model = transformers.BertForSequenceClassification(berts.config(num_labels=labels, **settings))
    model.bert.load_state_dict(base.bert.state_dict())
    return model if seed is None else tuned(model, seed)


def bare(seed=None):
    """The backbone alone."""
    model = transformers.BertModel(berts.config())
    model.load_state_dict(classifier(2).bert.state_dict())
    return model if seed is None else tuned(model, seed)


def oracle(tmp_path, base, *sources, settings=SETTINGS):
    """The merge of tensors that were aligned by hand."""
    paths = [tmp_path / f"oracle{number}.safetensors" for number in range(1 + len(sources))]
    for path, state in zip(paths, (base, *sources), strict=True):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    files.merge_files(paths[0], paths[1:], settings, tmp_path / "oracle.safetensors")
    return load_file(tmp_path / "oracle.safetensors")


def same(one, other):
    """Whether two states have the same tensors, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def merge(tmp_path, base, *sources, settings=SETTINGS, **given):
    out = tmp_path / "merged.safetensors"
    result = files.merge_files(base, sources, settings, out, verify=True, **given)
    return result, load_file(out)


@pytest.fixture
def heads(tmp_path):
    """A base with a head of two classes, and sources with three and with two."""
    base = save(tmp_path / "base", classifier(2))
    return base, *(
        save(tmp_path / f"s{labels}", classifier(labels, seed=labels)) for labels in (3, 2)
    )


def test_patterns_count_before_names_and_shapes_are_compared(tmp_path, heads):
    settings = recipe.MergeRecipe(density=0.5, exclude=("classifier.*",))
    result, merged = merge(tmp_path, *heads, settings=settings)
    states = [load_file(path) for path in heads]
    for state in states[1:]:
        state.update({n: states[0][n] for n in states[0] if n.startswith("classifier.")})
    assert same(merged, oracle(tmp_path, *states, settings=settings))
    assert result.source_digests == tuple(checkpoints.weights_digest(path) for path in heads[1:])


def test_what_only_a_source_has_and_patterns_exclude_is_left_out(tmp_path):
    torch.manual_seed(1)
    states = [{"a": torch.ones(4, 4) + 0.1 * torch.randn(4, 4)} for _ in range(2)]
    states[1]["probe.weight"] = torch.randn(3)
    paths = [tmp_path / "base.safetensors", tmp_path / "one.safetensors"]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    settings = recipe.MergeRecipe(density=1, exclude=("probe.*",))
    result, merged = merge(tmp_path, *paths, settings=settings)
    assert list(merged) == ["a"]
    assert result.notes == (f"left out of {paths[1]}: probe.weight",)
    assert result.source_digests == (checkpoints.weights_digest(paths[1]),)
    with pytest.raises(errors.MergeError, match=r"one\.safetensors: extra: probe\.weight\n"):
        files.merge_files(*paths[:1], paths[1:], SETTINGS, tmp_path / "other.safetensors")


def test_refusals_are_short(tmp_path):
    base = {f"layer.{number}": torch.ones(2) for number in range(9)}
    paths = [tmp_path / "base.safetensors", tmp_path / "one.safetensors"]
    save_file(base, paths[0])
    save_file({"other": torch.ones(2)}, paths[1])
    with pytest.raises(errors.MergeError) as caught:
        merge(tmp_path, *paths)
    assert "missing: layer.0, layer.1, layer.2, layer.3, layer.4 and 4 more\n" in str(caught.value)


def test_heads_of_other_sizes_are_kept_beside_the_backbone(tmp_path, heads):
    result, merged = merge(tmp_path, *heads)
    states = [load_file(path) for path in heads]
    own = ("classifier.bias", "classifier.weight")
    for state in states[1:]:
        state.update({name: states[0][name] for name in own})
    assert same(merged, oracle(tmp_path, *states))
    assert [aligned.own for aligned in result.alignments.values()] == [own, own]
    assert result.source_digests == tuple(checkpoints.weights_digest(path) for path in heads[1:])
    assert result.merged_tensors == len(states[0]) - 2


def test_heads_of_other_classes_are_kept_though_their_shapes_are_the_same(tmp_path):
    base = save(tmp_path / "base", classifier(3))
    names = {0: "up", 1: "down", 2: "level"}
    source = save(tmp_path / "one", classifier(3, seed=5, id2label=names))
    result, merged = merge(tmp_path, base, source)
    assert torch.equal(merged["classifier.weight"], load_file(base)["classifier.weight"])
    (aligned,) = result.alignments.values()
    assert aligned.own == ("classifier.bias", "classifier.weight")


def test_classes_of_a_head_that_is_not_known_are_refused(tmp_path):
    torch.manual_seed(0)
    paths = []
    for number, names in enumerate(({"0": "up", "1": "down"}, {"0": "left", "1": "right"})):
        folder = tmp_path / f"m{number}"
        folder.mkdir()
        save_file({"trunk.weight": torch.ones(4) + 0.1 * number}, folder / "model.safetensors")
        said = {"architectures": ["TrunkForThings"], "model_type": "t", "id2label": names}
        (folder / "config.json").write_text(json.dumps(said))
        paths.append(folder / "model.safetensors")
    with pytest.raises(errors.MergeError, match=r"other classes than the base, .*--own 'PAT"):
        merge(tmp_path, *paths)


def test_a_backbone_alone_is_a_base_of_models_with_heads(tmp_path):
    base = save(tmp_path / "base", bare())
    sources = [save(tmp_path / f"s{n}", classifier(n, seed=n)) for n in (2, 3)]
    result, merged = merge(tmp_path, base, *sources)
    cut = [
        {n.removeprefix("bert."): t for n, t in load_file(path).items() if n.startswith("bert.")}
        for path in sources
    ]
    assert same(merged, oracle(tmp_path, load_file(base), *cut))
    first = result.alignments[str(sources[0])]
    assert (first.prefix, first.prefix_in) == ("bert.", "source")
    assert first.own == ("classifier.bias", "classifier.weight")
    assert result.source_digests == tuple(map(checkpoints.weights_digest, sources))


def test_a_source_may_lack_the_prefix_that_the_base_has(tmp_path):
    base = save(tmp_path / "base", classifier(2))
    source = save(tmp_path / "one", bare(seed=3))
    result, merged = merge(tmp_path, base, source)
    state = {f"bert.{name}": tensor for name, tensor in load_file(source).items()}
    head = {n: t for n, t in load_file(base).items() if n.startswith("classifier.")}
    assert same(merged, oracle(tmp_path, load_file(base), state | head))
    (aligned,) = result.alignments.values()
    assert aligned.base == dict.fromkeys(sorted(head), "a head of the base")


def test_the_base_of_pretraining_has_heads_of_its_own(tmp_path):
    torch.manual_seed(0)
    base = save(tmp_path / "base", transformers.BertForMaskedLM(berts.config()))
    source = save(tmp_path / "one", classifier(3, seed=4))
    result, merged = merge(tmp_path, base, source)
    (aligned,) = result.alignments.values()
    assert set(aligned.own) == {
        *("bert.pooler.dense.bias", "bert.pooler.dense.weight"),
        *("classifier.bias", "classifier.weight"),
    }
    assert all(name.startswith("cls.") for name in aligned.base)
    assert merged.keys() == load_file(base).keys()


@pytest.mark.parametrize("kind", ["DistilBert", "ViT"])
def test_the_name_of_a_backbone_is_a_prefix_of_any_library_model(tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(**OTHERS[kind])
    head = {"DistilBert": "SequenceClassification", "ViT": "ImageClassification"}[kind]
    torch.manual_seed(0)
    base = getattr(transformers, f"{kind}Model")(config)
    path, states = save(tmp_path / "base", base), []
    for seed, classes in enumerate((3, 5)):
        config.num_labels = classes
        save(
            tmp_path / f"tuned{seed}",
            tuned(getattr(transformers, f"{kind}For{head}")(config), seed),
        )
        states.append(load_file(tmp_path / f"tuned{seed}" / "model.safetensors"))
    prefix = f"{kind.lower()}."
    found = [{n.removeprefix(prefix): t for n, t in s.items() if prefix in n} for s in states]
    given = load_file(path)
    wanted = oracle(tmp_path, given, *({n: s.get(n, given[n]) for n in given} for s in found))
    sources = [tmp_path / f"tuned{seed}" / "model.safetensors" for seed in range(2)]
    result, merged = merge(tmp_path, path, *sources)
    assert same(merged, wanted)
    assert any(f"the prefix {prefix!r} more" in note for note in result.notes)


@pytest.mark.parametrize("former_in_base", [True, False])
@pytest.mark.parametrize("make", [bare, lambda seed=None: classifier(2, seed)])
def test_norms_as_the_first_berts_call_them_are_merged(tmp_path, former_in_base, make):
    base, source = make().state_dict(), classifier(2, 1).state_dict()
    former = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in (base if former_in_base else source).items()
    }
    here, there = (former, source) if former_in_base else (base, former)
    prefix = "" if "bert.pooler.dense.weight" in base else "bert."
    own = {n: source[f"{prefix}{n}"] for n in base}
    wanted = oracle(tmp_path, base, own)
    given = save(tmp_path / "base", make(), here)
    _, merged = merge(tmp_path, given, save(tmp_path / "source", classifier(2), there))
    assert merged.keys() == here.keys()
    assert all(torch.equal(merged[n], wanted[old]) for n, old in zip(here, base, strict=True))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_what_wrappers_write_before_names_is_understood(tmp_path, prefix):
    base = save(tmp_path / "base", classifier(2))
    model = classifier(2, seed=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = save(tmp_path / "one", model, {f"{prefix}{n}": t for n, t in state.items()})
    _, merged = merge(tmp_path, base, source)
    assert same(merged, oracle(tmp_path, load_file(base), state))


def qwen(seed, **settings):
    torch.manual_seed(0)
    known = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    known |= {"num_key_value_heads": 1, "intermediate_size": 24, "vocab_size": 25}
    config = transformers.Qwen2Config(**known | {"tie_word_embeddings": True} | settings)
    model = transformers.Qwen2ForCausalLM(config)
    return model if seed is None else tuned(model, seed)


def test_an_output_that_one_source_wrote_out_is_the_input_embedding(tmp_path):
    base = save(tmp_path / "base", qwen(None))
    model = qwen(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in state
    written = save(tmp_path / "written", model, state)
    plain = save(tmp_path / "plain", qwen(2))
    result, merged = merge(tmp_path, base, written, plain)
    state.pop("lm_head.weight")
    assert same(merged, oracle(tmp_path, load_file(base), state, load_file(plain)))
    aligned = result.alignments[str(written)]
    assert aligned.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert result.source_digests[0] == checkpoints.weights_digest(written)


def test_an_output_that_the_base_wrote_out_is_merged_as_the_embedding(tmp_path):
    model = qwen(None)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = save(tmp_path / "base", model, state)
    source = save(tmp_path / "one", qwen(1))
    _, merged = merge(tmp_path, base, source)
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], state["lm_head.weight"])


def test_an_output_of_its_own_is_refused_as_untied(tmp_path):
    base = save(tmp_path / "base", qwen(None))
    source = save(tmp_path / "one", qwen(1, tie_word_embeddings=False))
    words = r"not the input embedding: lm_head\.weight\n.*takes its input embedding.*--exclude"
    with pytest.raises(errors.MergeError, match=words):
        merge(tmp_path, base, source)


def test_what_to_do_about_an_output_of_its_own(tmp_path):
    """As docs/how-to/text-models.md says: keep it, drop it, or write out the base's."""
    name, embedding = "lm_head.weight", "model.embed_tokens.weight"
    model = qwen(None)
    base = save(tmp_path / "base", model)
    source = save(tmp_path / "one", qwen(1, tie_word_embeddings=False))
    kept, merged = merge(
        *(tmp_path / "kept", base, source), settings=recipe.MergeRecipe(density=1, own=(name,))
    )
    assert kept.alignments[str(source)].own == (name,)
    assert name not in merged
    dropped, merged = merge(
        *(tmp_path / "dropped", base, source),
        settings=recipe.MergeRecipe(density=1, exclude=(name,)),
    )
    assert dropped.alignments[str(source)].left_out == {name: "excluded"}
    assert name not in merged
    model.config.tie_word_embeddings = False
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    written = save(tmp_path / "written", model, state)
    _, merged = merge(tmp_path / "merged", written, source, settings=SUM)
    for key in (name, embedding):
        torch.testing.assert_close(merged[key], load_file(source)[key])


def test_an_output_of_its_own_is_not_merged_into_a_model_that_reads_none(tmp_path):
    base = qwen(None)
    states = base.state_dict()
    assert torch.equal(states["lm_head.weight"], states["model.embed_tokens.weight"])
    path = save(tmp_path / "base", base, {name: t.clone() for name, t in states.items()})
    source = save(tmp_path / "source", qwen(1, tie_word_embeddings=False))
    with pytest.raises(errors.MergeError, match=r"input embedding: lm_head\.weight"):
        merge(tmp_path, path, source)
    merge(
        *(tmp_path, path, source),
        settings=recipe.MergeRecipe(density=0.5, exclude=("lm_head.weight",)),
    )


@pytest.mark.parametrize("field", ["include", "exclude", "own"])
def test_a_pattern_of_the_source_s_names_is_refused(tmp_path, field):
    base, source = save(tmp_path / "base", bare()), save(tmp_path / "source", classifier(3, 1))
    settings = recipe.MergeRecipe(density=0.5, **{field: ("bert.pooler.*",)})
    with pytest.raises(errors.MergeError, match=r"'bert\.pooler\.\*' names no tensor of the base"):
        merge(tmp_path, base, source, settings=settings)
    settings = recipe.MergeRecipe(density=0.5, **{field: ("*pooler.*",)})
    merge(tmp_path, base, source, settings=settings, max_norm_ratio=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 32}, r"is another model: hidden_size is 32 \(the base's: 16\)"),
        ({"vocab_size": 30}, r"vocabulary of .* was resized, to 30 tokens from 25"),
    ],
)
def test_a_wrong_base_is_refused_with_its_cause(tmp_path, change, words):
    base = save(tmp_path / "base", classifier(2))
    model = transformers.BertForSequenceClassification(berts.config(**change))
    with pytest.raises(errors.MergeError, match=words):
        merge(tmp_path, base, save(tmp_path / "one", model))


def worded(tmp_path, name, words, seed=None):
    """A model of masked words with a row per word, and its tokenizer."""
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(berts.config(vocab_size=40))
    model.resize_token_embeddings(len(words))
    if seed is not None:
        tuned(model, seed)
    path = save(tmp_path / name, model)
    (tmp_path / f"{name}.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / f"{name}.txt"))
    tokenizer.save_pretrained(path.parent)
    return path


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(20)))
ROWS = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")


@pytest.mark.parametrize("words", [(*WORDS, "new", "newer"), WORDS[:20]])
def test_a_vocabulary_of_another_size_is_merged_on_common_tokens(tmp_path, words):
    base = worded(tmp_path, "base", WORDS)
    source = worded(tmp_path, "one", words, seed=1)
    other = worded(tmp_path, "two", WORDS, seed=2)
    result, merged = merge(tmp_path, base, source, other)
    ours, state = load_file(base), load_file(source)
    common = min(len(words), len(WORDS))
    for name in ROWS:
        state[name] = torch.cat([state[name][:common], ours[name][common:]])
    assert same(merged, oracle(tmp_path, ours, state, load_file(other)))
    aligned = result.alignments[str(source)]
    assert aligned.tokens == (((0, common),), common, max(0, len(words) - len(WORDS)))
    assert set(aligned.resized) == set(ROWS)
    assert result.source_digests[0] == checkpoints.weights_digest(source)
    assert aligned.to_dict()["vocabulary"]["tensors"] == sorted(ROWS)


def test_a_vocabulary_in_other_bits_is_merged_exactly(tmp_path):
    base = worded(tmp_path, "base", WORDS)
    source = worded(tmp_path, "one", (*WORDS, "new"), seed=1)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source).items()}
    save_file(half, source)
    _, merged = merge(tmp_path, base, source)
    ours = load_file(base)
    for name in ROWS:
        half[name] = half[name].float()[: len(WORDS)]
    assert same(merged, oracle(tmp_path, ours, half))


def test_tokenizers_that_disagree_are_refused_by_the_first_token(tmp_path):
    base = worded(tmp_path, "base", WORDS)
    words = [*WORDS, "new"]
    words[7], words[9] = words[9], words[7]
    source = worded(tmp_path, "one", words, seed=1)
    said = r"disagree: token 7 is 'w4' there and 'w2' in the base"
    with pytest.raises(errors.MergeError, match=said):
        merge(tmp_path, base, source)
    os.remove(source.with_name("tokenizer.json"))
    said = r"resized, to 26 tokens from 25, and a tokenizer is missing"
    with pytest.raises(errors.MergeError, match=said):
        merge(tmp_path, base, source)
    source.with_name("vocab.txt").write_text("\n".join([*WORDS, "new"]))
    result, _ = merge(tmp_path, base, source)
    assert result.alignments[str(source)].tokens.added == 1


def test_another_tokenizer_with_as_many_tokens_is_refused(tmp_path):
    words = [f"w{number}" for number in range(30)]
    base = worded(tmp_path, "base", words)
    settings = recipe.MergeRecipe(density=0.5)
    few = worded(tmp_path, "few", [*words[:-2], "x", "y"], 1)
    merge(tmp_path, base, few, settings=settings)
    other = worded(tmp_path, "other", words[::-1], 1)
    with pytest.raises(errors.MergeError, match="token 0 is 'w29' there and 'w0' in the base"):
        merge(tmp_path, base, other, settings=settings)
    kept = recipe.MergeRecipe(density=0.5, exclude=("*word_embeddings.weight",))
    merge(tmp_path, base, other, settings=kept, overwrite=True)


def test_another_architecture_is_named(tmp_path):
    base = save(tmp_path / "base", classifier(2))
    with pytest.raises(errors.MergeError, match=r"model_type is qwen2 \(the base's: bert\)"):
        merge(tmp_path, base, save(tmp_path / "one", qwen(1)))


def test_heads_without_a_configuration_are_named_by_hand(tmp_path, heads):
    for path in heads:
        os.remove(path.with_name("config.json"))
    with pytest.raises(errors.MergeError, match=r"Keep each source's \(--own 'classifier\.\*'\)"):
        merge(tmp_path, *heads)
    settings = recipe.MergeRecipe(density=0.5, own=("classifier.*",))
    result, merged = merge(tmp_path, *heads, settings=settings)
    assert torch.equal(merged["classifier.weight"], load_file(heads[0])["classifier.weight"])
    assert len(result.alignments) == 2
    assert result.recipe.to_dict()["own"] == ["classifier.*"]


def test_a_dry_run_says_what_becomes_of_the_tensors(heads):
    found = files.budget(
        heads[0], heads[1:], drafts.RecipeDraft(SETTINGS), choosing.choose("cpu", "auto")
    )
    said = found.to_dict()["alignment"]
    own = ["classifier.bias", "classifier.weight"]
    assert [aligned["own"] for aligned in said.values()] == [own, own]
    notes = [text for word, text in found.lines() if word == "note"]
    assert notes[0] == f"{heads[1]} has 2 tensors of its own, not merged: {', '.join(own)}"


def test_shards_are_merged_as_one_file_is(tmp_path, heads):
    whole, _ = merge(tmp_path, *heads)
    out = tmp_path / "sharded" / "model.safetensors"
    out.parent.mkdir()
    result = files.merge_files(heads[0], heads[1:], SETTINGS, out, verify=True, max_shard_size=4096)
    assert result.weights_digest == whole.weights_digest
    assert result.source_digests == whole.source_digests


def test_workers_open_what_was_planned(tmp_path, heads):
    whole, _ = merge(tmp_path, *heads)
    out = tmp_path / "planned" / "model.safetensors"
    with checkpoints.Checkpoint.open(heads[0]) as base:
        sources = [checkpoints.Checkpoint.open(path) for path in heads[1:]]
        made = plans.make(base, sources, SETTINGS, out, max_shard_size=4096)
    made.save(tmp_path / "plan.json")
    plan = plans.read(tmp_path / "plan.json")
    list(working.work_all(plan, working.missing(plan)))
    result = finishing.finish(plan)
    assert result.weights_digest == whole.weights_digest
    assert result.source_digests == whole.source_digests


def test_workers_refuse_another_configuration(tmp_path):
    paths = [save(tmp_path / f"m{n}", classifier(3, seed=n or None)) for n in range(2)]
    opened = [checkpoints.Checkpoint.open(path) for path in paths]
    out = tmp_path / "planned" / "model.safetensors"
    plan = plans.make(opened[0], opened[1:], SETTINGS, out)
    assert plan.aligned is None
    config = paths[1].with_name("config.json")
    names = {"id2label": {"0": "up", "1": "down", "2": "level"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | names))
    with pytest.raises(errors.MergeError, match=r"than their config\.json says now"):
        list(working.work_all(plan, [1]))


def test_a_damaged_configuration_stops_the_merge(tmp_path, heads):
    heads[1].with_name("config.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match=r"config\.json beside .*s3"):
        merge(tmp_path, *heads)


UNNAMED = "heads are merged (classifier.bias, classifier.weight) whose classes have no names"


def test_heads_of_classes_without_names_are_said(tmp_path):
    """The head of one source is nobody's but its own, and names that agree are no doubt."""
    base = save(tmp_path / "base", classifier(3))
    sources = [save(tmp_path / f"s{seed}", classifier(3, seed=seed)) for seed in (1, 2)]
    draft = drafts.RecipeDraft(SETTINGS)
    for given, doubtful in ((sources, True), (sources[:1], False)):
        result, _ = merge(tmp_path / f"of-{len(given)}", base, *given)
        assert any(note.startswith(UNNAMED) for note in result.notes) is doubtful
        budget = files.budget(base, given, draft, choosing.choose("cpu"))
        assert any(UNNAMED in said for _, said in budget.lines()) is doubtful
    names = {0: "cat", 1: "dog", 2: "owl"}
    named = [save(tmp_path / "named", classifier(3, id2label=names))]
    named += [
        save(tmp_path / f"n{seed}", classifier(3, seed=seed, id2label=names)) for seed in (1, 2)
    ]
    result, _ = merge(tmp_path / "of-named", *named)
    assert result.notes == ()
    torch.manual_seed(0)
    masked = transformers.BertForMaskedLM(berts.config())
    without = [save(tmp_path / "masked", masked)]
    without += [save(tmp_path / f"m{seed}", tuned(masked, seed)) for seed in (1, 2)]
    assert merge(tmp_path / "of-masked", *without)[0].notes == ()
