"""Versions that name a commit on the hub in place of weights: from a hand-made cache, offline."""

import shutil

import hub
import mlflow
import pytest
import torch
import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.audit import reproduce, verify
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.flavor import pulling
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import hub_weights, versions

transformers = pytest.importorskip("transformers")
berts = pytest.importorskip("berts")

pytestmark = pytest.mark.slow

REPOSITORY = "acme/bert"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What the repository has: a small BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(berts.config()).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub"


@pytest.fixture
def commit(store, published, cache, tmp_path, monkeypatch):
    """The base is logged by reference, two fine-tunes of it whole; afterwards all is offline."""
    commit = hub.keep(cache, REPOSITORY, published)
    with (
        hub.serving(REPOSITORY, commit, published) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        hub.use(patch, cache, url)
        parts = {
            "model": transformers.BertForSequenceClassification.from_pretrained(REPOSITORY),
            "tokenizer": transformers.BertTokenizer.from_pretrained(REPOSITORY),
        }
        with mlflow.start_run():
            mlflow.transformers.log_model(
                parts,
                name="model",
                task="text-classification",
                registered_model_name="bert",
                pip_requirements=["torch", "transformers"],
                save_pretrained=False,
            )
    for number in (1, 2):
        torch.manual_seed(number)
        model = transformers.BertForSequenceClassification.from_pretrained(published)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        berts.register(f"bert-{number}", model, tmp_path)
    hub.use(monkeypatch, cache)
    return commit


def request(**changes):
    settings = {
        "base": "models:/bert/1",
        "sources": ("models:/bert-1/1", "models:/bert-2/1"),
        "registered_model": "merged",
        "recipe": recipe.MergeRecipe.from_method("task_arithmetic", sources=2, alpha=1),
        "device": "cpu",
    }
    return flow.MergeRequest(**(settings | changes))


def test_the_merged_version_carries_what_the_base_names(commit, published, cache, tmp_path):
    resolved = versions.resolve("models:/bert/1")
    assert not versions.stored_bytes(resolved)
    made = flow.merge(request(work_folder=str(tmp_path / "work"), max_shard_size=20_000))
    base = checkpoints.weights_digest(published / "model.safetensors")
    stated = contents.read_statement(versions.resolve(made.version.uri))[1]
    assert stated.base.weights_digest == base
    assert verify.verify(made.version.uri).ok
    assert reproduce.reproduce(made.version.uri).identical
    pulled = pulling.pull("models:/bert/1", tmp_path / "pulled")
    assert (pulled.weights_digest, pulled.loaded) == (base, "transformers")
    assert not (pulled.folder / "model.safetensors").is_symlink()
    before = transformers.BertForSequenceClassification.from_pretrained(published).state_dict()
    sources = [
        mlflow.transformers.load_model(uri, return_type="components")["model"].state_dict()
        for uri in request().sources
    ]
    shutil.rmtree(cache)
    loaded = mlflow.transformers.load_model(made.version.uri, return_type="components")
    for name, tensor in loaded["model"].state_dict().items():
        expected = before[name] + sum(source[name] - before[name] for source in sources)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert loaded["tokenizer"]("w1 w2")["input_ids"] == [2, 6, 7, 3]
    assert flow.merge(request()).reused, "which needs none of it"


def test_what_is_not_in_the_cache_is_refused_or_downloaded(
    commit, published, cache, tmp_path, monkeypatch
):
    shutil.rmtree(cache)
    words = rf"it names acme/bert at {commit} on Hugging Face's hub, which is not in the cache"
    with pytest.raises(errors.RegistryError, match=words) as caught:
        flow.merge(request())
    assert f"`hf download acme/bert --revision {commit}`" in str(caught.value)
    monkeypatch.setenv(hub_weights.DOWNLOAD, "true")
    with pytest.raises(errors.RegistryError, match="it can't be downloaded: "):
        flow.merge(request())
    with hub.serving(REPOSITORY, commit, published) as url:
        hub.use(monkeypatch, cache, url)
        made = flow.merge(request())
    assert not made.reused
    (kept,) = cache.glob("models--acme--bert/snapshots/*/model.safetensors")
    assert kept.read_bytes() == (published / "model.safetensors").read_bytes()


def test_a_commit_without_safetensors_or_with_a_part_is_refused(commit, cache, tmp_path):
    (snapshot,) = cache.glob("models--acme--bert/snapshots/*")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(errors.RegistryError, match=r"which has no model\.safetensors or model"):
        flow.merge(request())
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(yaml.safe_dump(index))
    with pytest.raises(errors.RegistryError, match="a merge reads one safetensors checkpoint"):
        flow.merge(request())


@pytest.mark.parametrize(
    ("repository", "commit"),
    [
        ("../../etc", "0" * 40),
        ("/etc", "0" * 40),
        ("https://evil.example/x", "0" * 40),
        ("acme/bert", "main"),
        (None, "0" * 40),
        ("acme/bert", 7),
    ],
)
def test_a_reference_names_no_path_no_host_and_no_branch(repository, commit):
    declared = {"source_model_name": repository, "source_model_revision": commit}
    with pytest.raises(errors.IntegrityError, match="which is no commit of a repository"):
        hub_weights.reference(declared, "models:/bert/1")
