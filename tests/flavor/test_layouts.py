"""Versions with several checkpoints, or without MLmodel: merged whole, and laid out as before."""

import json
from pathlib import Path

import merging_anything
import mlflow
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file, save_model

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import reproduce, verify
from mlflow_breadcrumbs.flavor import pulling
from mlflow_breadcrumbs.registry import versions

transformers = pytest.importorskip("transformers")
berts = pytest.importorskip("berts")

pytestmark = pytest.mark.slow


def folder_of(uri):
    """Where the version's files are."""
    return Path(versions.resolve(uri).location.removeprefix("file://"))


def held_to_the_bases(uri):
    """What MLmodel says beside the flavors, and what it says of the files."""
    base, merged = (mlflow.models.Model.load(address) for address in ("models:/base/1", uri))
    assert merged.saved_input_example_info == base.saved_input_example_info
    folders = [folder_of(address) for address in ("models:/base/1", uri)]
    examples = [
        model.load_input_example(folder)
        for model, folder in zip((base, merged), folders, strict=True)
    ]
    assert list(examples[0]) == list(examples[1]) == ["w1 w2"]
    assert merged.get_serving_input(folders[1]) == base.get_serving_input(folders[0])
    assert (merged.signature, merged.metadata) == (base.signature, base.metadata)
    assert merged.metadata == {"team": "search"}
    of_mlflow = {"MLmodel", "registered_model_meta"}
    files = [file for file in folders[1].rglob("*") if file.name not in of_mlflow]
    assert merged.model_size_bytes == sum(file.stat().st_size for file in files if file.is_file())


@pytest.fixture
def sentences(tmp_path):
    """Three models of a tiny BERT, a pooling and a Dense module."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    transformers.BertModel(berts.config()).save_pretrained(tmp_path / "bert")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")

    def make():
        bert = modules.Transformer(str(tmp_path / "bert"))
        pooling = modules.Pooling(16)
        dense = modules.Dense(16, 8)
        return library.SentenceTransformer(modules=[bert, pooling, dense], device="cpu")

    return merging_anything.family(make(), make)


def test_sentence_transformers_with_a_dense_module(store, sentences, tmp_path):
    """Every module is merged, and the library finds each where it was."""
    library = pytest.importorskip("sentence_transformers")
    for name, model in zip(("base", "one", "two"), sentences, strict=True):
        with mlflow.start_run():
            mlflow.sentence_transformers.log_model(
                model,
                name="model",
                registered_model_name=name,
                input_example=["w1 w2"],
                pip_requirements=["sentence-transformers"],
                metadata={"team": "search"},
            )
    result = merging_anything.merge("models:/base/1", "models:/one/1", "models:/two/1")
    before, after = folder_of("models:/base/1"), folder_of(result.version.uri)
    names = {path.relative_to(before) for path in before.rglob("*.safetensors")}
    assert Path("model.sentence_transformer/2_Dense/model.safetensors") in names
    assert {path.relative_to(after) for path in after.rglob("*.safetensors")} == names
    held_to_the_bases(result.version.uri)
    states = [model.state_dict() for model in sentences]
    loaded = mlflow.sentence_transformers.load_model(result.version.uri)
    merging_anything.hold(loaded.state_dict(), states[0], states[1:])
    said = command("pull", result.version.uri, str(tmp_path / "pulled"))
    assert said["loaded"] == "sentence_transformers"
    again = library.SentenceTransformer(str(tmp_path / "pulled"), device="cpu")
    assert again.encode(["w1 w2"]).shape == (1, 8)
    assert all(torch.equal(again.state_dict()[n], t) for n, t in loaded.state_dict().items())


def test_a_value_head_beside_a_sharded_model(store, monkeypatch, tmp_path):
    """It is merged with the model; names that both have stay apart."""
    monkeypatch.setenv("MLFLOW_HUGGINGFACE_MODEL_MAX_SHARD_SIZE", "6KB")
    torch.manual_seed(0)
    config = berts.config()
    make = lambda: transformers.BertForSequenceClassification(config)  # noqa: E731
    models = merging_anything.family(make(), make)
    head = {"classifier.bias": torch.randn(3), "v_head.weight": torch.randn(1, 16)}
    heads = [head, merging_anything.shift(head, 1), merging_anything.shift(head, 2)]
    uris = []
    for number, (model, own) in enumerate(zip(models, heads, strict=True)):
        berts.register(f"bert-{number}", model, tmp_path)
        uris.append(f"models:/bert-{number}/1")
        save_file(own, folder_of(uris[-1]) / "model" / "value_head.safetensors")
    result = merging_anything.merge(*uris)
    before, after = (folder_of(uri) / "model" for uri in (uris[0], result.version.uri))
    assert len(list(before.glob("model-*"))) > 2
    merging_anything.hold(load_file(after / "value_head.safetensors"), head, heads[1:])
    loaded = mlflow.transformers.load_model(result.version.uri, return_type="components")["model"]
    states = [model.state_dict() for model in models]
    merging_anything.hold(loaded.state_dict(), states[0], states[1:])
    largest = max(file.stat().st_size for file in before.glob("model-*"))
    assert max(file.stat().st_size for file in after.glob("model-*")) <= 1.5 * largest
    said = command("pull", result.version.uri, str(tmp_path / "pulled"))
    assert {"value_head.safetensors", "model.safetensors.index.json"} <= set(said["files"])
    smaller = merging_anything.merge(*uris, force=True, max_shard_size=3_000)
    assert smaller.version.weights_digest == result.version.weights_digest
    finer = folder_of(smaller.version.uri) / "model"
    assert len(list(finer.glob("model-*"))) > len(list(after.glob("model-*")))
    assert (finer / "value_head.safetensors").read_bytes() == (
        after / "value_head.safetensors"
    ).read_bytes()


NORMS = """
from pathlib import Path

from safetensors.torch import load_file


def largest(folder, data):
    files = [Path(folder) / place / "model.safetensors" for place in ("", "2_Dense")]
    weights = [load_file(file)["linear.weight"] for file in files]
    assert [list(weight.shape) for weight in weights] == [[16, 8], [4, 16]]
    return {"accuracy": round(float(weights[1].max())) / 100, "n": 100}
"""
EVALUATORS = """
tasks:
  - name: largest
    python: norms:largest
    data: {validation: norms.py, test: evaluators.yaml}
"""


def test_several_checkpoints_are_compared_measured_swept_and_diffed(store, tmp_path):
    """Each command sees all tensors, and who measures sees the files as the base has them."""
    (tmp_path / "norms.py").write_text(NORMS)
    (tmp_path / "evaluators.yaml").write_text(EVALUATORS)
    uris = []
    for number in range(3):
        (folder := tmp_path / f"two-{number}" / "2_Dense").mkdir(parents=True)
        for place, shape in ((folder.parent, (16, 8)), (folder, (4, 16))):
            base = {"linear.weight": torch.arange(float(shape[0] * shape[1])).reshape(shape)}
            save_file(merging_anything.shift(base, number), place / "model.safetensors")
        uris.append(merging_anything.register(folder.parent))
    words = ["--base", uris[0], "--sources", ",".join(uris[1:])]
    found = command("compare", *words)
    assert found["parameters"] == 16 * 8 + 4 * 16
    measured = ["--evaluator", "evaluators.yaml", "--method", "task_arithmetic"]
    swept = command("sweep", *words, *measured, "--alpha", "0.5,1")
    assert {trial["alpha"] for trial in swept["trials"]} == {0.5, 1}
    merged = command("merge", *words, *measured, "--alpha", "1", "--registered-model", "merged")
    assert merged["metrics"]["accuracy/largest"] == pytest.approx(0.63, abs=0.01)
    evaluated = command("evaluate", merged["uri"], "--evaluator", "evaluators.yaml")
    assert evaluated["metrics"]["accuracy/largest"] == merged["metrics"]["accuracy/largest"]
    differing = command("diff", uris[0], merged["uri"])
    assert sum(group["different"] for group in differing["groups"]) == 2


def command(*words):
    """What a command prints as JSON."""
    result = CliRunner().invoke(cli.main, [*words, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def folder_with(folder, tensors, **files):
    """A folder as people keep them, with the weights and small files; registered as it is."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    mlflow.register_model(folder.as_uri(), folder.name)
    return f"models:/{folder.name}/1"


def test_a_folder_without_mlmodel_is_merged_and_merged_again(store, tmp_path):
    """What comes out has an MLmodel; it is pulled, and goes in again."""
    tensors = {"a.weight": torch.randn(8, 4), "a.bias": torch.randn(8)}
    states = [tensors, merging_anything.shift(tensors, 1), merging_anything.shift(tensors, 2)]
    uris = [
        folder_with(tmp_path / f"plain-{number}", state, notes={"by": "hand"})
        for number, state in enumerate(states)
    ]
    result = merging_anything.merge(*uris)
    after = folder_of(result.version.uri)
    merging_anything.hold(load_file(after / "model.safetensors"), states[0], states[1:])
    assert json.loads((after / "notes.json").read_text()) == {"by": "hand"}
    assert list(mlflow.models.Model.load(str(after)).flavors) == ["safetensors"]
    said = command("pull", result.version.uri, str(tmp_path / "pulled"))
    assert said["loaded"] is None
    assert set(said["files"]) == {"model.safetensors", "notes.json", "lineage.json"}
    again = merging_anything.merge(uris[0], result.version.uri, registered_model="again")
    assert versions.resolve(again.version.uri).recorded_digest is not None


def test_what_was_merged_without_a_further_checkpoint_is_still_true(store, tmp_path):
    """As releases did that read the main one alone; what it holds is still held against it."""
    tensors = {"a.weight": torch.randn(8, 4)}
    uris = [
        folder_with(tmp_path / f"main-{number}", merging_anything.shift(tensors, number))
        for number in range(2)
    ]
    result = merging_anything.merge(*uris)
    save_file({"v.weight": torch.ones(3)}, tmp_path / "main-0" / "value_head.safetensors")
    report = verify.verify(result.version.uri)
    assert report.ok, report.failures
    assert any("main checkpoint, without those" in check.detail for check in report.checks)
    assert reproduce.reproduce(result.version.uri).identical
    save_file({"a.weight": torch.ones(8, 4)}, tmp_path / "main-0" / "model.safetensors")
    assert not verify.verify(result.version.uri).ok


def test_folders_of_a_hub_cache_are_merged(store, monkeypatch, tmp_path):
    """As transformers saves them, in shards that are links; what comes out loads there."""
    torch.manual_seed(0)
    config = berts.config()
    make = lambda: transformers.BertForSequenceClassification(config)  # noqa: E731
    models = merging_anything.family(make(), make)
    uris = []
    for number, model in enumerate(models):
        cache = tmp_path / f"models--org--bert-{number}"
        snapshot = cache / "snapshots" / "c0ffee"
        model.save_pretrained(snapshot, max_shard_size="6KB")
        (cache / "blobs").mkdir()
        for file in list(snapshot.iterdir()):
            file.rename(cache / "blobs" / f"0{file.name}")
            file.symlink_to(f"../../blobs/0{file.name}")
        mlflow.register_model(snapshot.as_uri(), f"bert-{number}")
        uris.append(f"models:/bert-{number}/1")
    result = merging_anything.merge(*uris)
    assert not [path for path in folder_of(result.version.uri).rglob("*") if path.is_symlink()]
    said = command("pull", result.version.uri, str(tmp_path / "pulled"))
    assert said["loaded"] == "transformers"
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "pulled")
    states = [model.state_dict() for model in models]
    merging_anything.hold(loaded.state_dict(), states[0], states[1:])
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "models--org--bert-0/snapshots/c0ffee/notes.json").symlink_to(
        tmp_path / "secret.json"
    )
    with pytest.raises(errors.RegistryError, match=r"notes.json at .*, a symlink .*\(cp -rL /"):
        merging_anything.merge(*uris, force=True)


def test_code_that_a_folder_brings_is_not_run(store, tmp_path):
    """As a module of sentence-transformers may be named."""
    pytest.importorskip("sentence_transformers")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]
    uri = folder_with(tmp_path / "coded", {"a.weight": torch.ones(2)}, modules=modules)
    (tmp_path / "coded" / "own.py").write_text("raise SystemExit('run')")
    said = command("pull", uri, str(tmp_path / "pulled"))
    assert said["note"] == "its module own.Module is code of its own, which is not run"
    assert "own.py" in said["files"]


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_image_models_of_other_libraries(store, tmp_path, library):
    """As folders of safetensors, since a pickle is refused; running statistics are the base's."""
    pytest.importorskip(library)
    make = {"torchvision": resnet, "timm": tiny_of_timm}[library]
    torch.manual_seed(0)
    models = merging_anything.family(make(), make)
    states = [model.state_dict() for model in models]
    uris = [folder_with(tmp_path / f"image-{number}", state) for number, state in enumerate(states)]
    result = merging_anything.merge(*uris)
    merged = load_file(folder_of(result.version.uri) / "model.safetensors")
    make().load_state_dict(merged)
    summed = [name for name in merged if "running" not in name and "num_batches" not in name]
    of = lambda state: {name: state[name] for name in summed}  # noqa: E731
    merging_anything.hold(of(merged), of(states[0]), [of(state) for state in states[1:]])


def resnet():
    import torchvision

    return torchvision.models.resnet18(num_classes=3)


def tiny_of_timm():
    import timm

    return timm.create_model("test_resnet", num_classes=3)


def test_a_pickle_is_refused_with_a_way_that_works(store, tmp_path):
    """The message's own steps give a version that can be merged."""
    model = torch.nn.Linear(4, 2)
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            model,
            name="model",
            registered_model_name="pickled",
            pip_requirements=["torch"],
            serialization_format="pickle",
        )
    uris = []
    for number in (1, 2):
        folder = tmp_path / f"folder-{number}"
        folder.mkdir()
        tuned = torch.nn.Linear(4, 2)
        tuned.load_state_dict(merging_anything.shift(model.state_dict(), number))
        save_model(tuned, folder / "model.safetensors")
        uris.append(merging_anything.register(folder))
    merging_anything.merge(*uris)
    with pytest.raises(errors.RegistryError, match=r"'pytorch' and holds no safe.*save_model\(mod"):
        merging_anything.merge(uris[0], "models:/pickled/1")


def test_a_version_that_can_not_be_read_whole_is_refused(store, tmp_path):
    """Weights of a module that are a pickle, or adapters of which none is the one."""
    tensors = {"a.weight": torch.ones(2)}
    uri = folder_with(tmp_path / "dense", tensors, modules=[])
    (tmp_path / "dense" / "2_Dense").mkdir()
    torch.save({}, tmp_path / "dense" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(errors.RegistryError, match=r"holds mod.*, 2_Dense/pytorch_model\.bin; a"):
        pulling.pull(uri, tmp_path / "pulled")
    uri = folder_with(tmp_path / "adapters", tensors)
    for name in ("one", "two"):
        (tmp_path / "adapters" / name).mkdir()
        save_file(tensors, tmp_path / "adapters" / name / "adapter_model.safetensors")
    with pytest.raises(errors.RegistryError, match=r"one/adapter.*, two/adapter.*; register each"):
        pulling.pull(uri, tmp_path / "pulled")
