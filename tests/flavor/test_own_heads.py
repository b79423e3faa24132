"""Sources of transformers with heads of their own: merged, kept, evaluated, pulled, promoted."""

import copy
import json
from pathlib import Path

import berts
import mlflow
import pytest
import texts
import torch
import transformers
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import reproduce, verify
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluator_files
from mlflow_breadcrumbs.flavor import pulling
from mlflow_breadcrumbs.lineage import ancestry_tags, contents
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import workbench

pytestmark = pytest.mark.slow

LABELS = {"fruit": 3, "place": 2}
"""The number of classes of each task."""
SOURCES = ("models:/bert-fruit/1", "models:/bert-place/1")


def config(words, **settings):
    return berts.config(
        vocab_size=len(words), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **settings
    )


@pytest.fixture
def family(store, tmp_path, monkeypatch):
    """A backbone, and a classifier per task that was trained from it; the models by name."""
    monkeypatch.chdir(tmp_path)
    return register(tmp_path)


def register(tmp_path):
    """Register them where MLflow is, with texts in a folder."""
    texts.write(tmp_path)
    for split in ("validation", "test"):  # the third class is not one of two
        file = tmp_path / f"place-{split}.csv"
        rows = file.read_text().splitlines()
        file.write_text("\n".join(row for row in rows if not row.endswith(",2")) + "\n")
    words = texts.tokenizer(tmp_path)
    torch.manual_seed(0)
    base = transformers.BertModel(config(words)).eval()
    texts.log("bert", base, words, "feature-extraction")
    models = {"bert": base, "words": words}
    for task, count in LABELS.items():
        names = {number: f"{task}-{number}" for number in range(count)}
        tuned = transformers.BertForSequenceClassification(
            config(words, num_labels=count, id2label=names)
        )
        tuned.bert.load_state_dict(base.state_dict())
        train(tuned, words, task, count)
        texts.log(f"bert-{task}", tuned, words)
        models[task] = tuned
    client = mlflow.MlflowClient()
    client.set_model_version_tag("bert-fruit", "1", "breadcrumbs.task", "fruit")
    client.set_model_version_tag("bert-place", "1", "breadcrumbs.task", "place")
    return models


def train(model, words, task, count):
    found = [(text, label) for text, label in texts.examples(task, 60, 2) if label < count]
    inputs = words([text for text, _ in found], return_tensors="pt", padding=True)
    labels = torch.tensor([label for _, label in found])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def request(**settings):
    known = {
        "base": "models:/bert/1",
        "sources": SOURCES,
        "registered_model": "merged",
        "recipe": recipe.MergeRecipe.from_method("task_arithmetic", sources=2, alpha=0.5),
        "device": "cpu",
    }
    return flow.MergeRequest(**known | settings)


def expected(models):
    """The backbone that the merge must give."""
    base = models["bert"].state_dict()
    return {
        name: tensor + 0.5 * sum(models[task].bert.state_dict()[name] - tensor for task in LABELS)
        for name, tensor in base.items()
    }


def accuracy(models, task, backbone):
    """Of a backbone with a task's own head, on its test texts."""
    model = copy.deepcopy(models[task])
    model.bert.load_state_dict(backbone)
    rows = [row.split(",") for row in Path(f"{task}-test.csv").read_text().splitlines()[1:]]
    inputs = models["words"]([text for text, _ in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**inputs).logits.argmax(dim=1)
    return (found == torch.tensor([int(label) for _, label in rows])).float().mean().item()


def test_heads_are_carried_by_the_merged_version(family, tmp_path):
    result = flow.merge(request())
    resolved = versions.resolve("models:/merged/1")
    assert resolved.tasks == ("fruit", "place")
    assert verify.verify("models:/merged/1").ok
    assert reproduce.reproduce("models:/merged/1").identical
    assert flow.merge(request()).version == result.version
    _, stated = contents.read_statement(resolved)
    for source, task in zip(stated.sources, LABELS, strict=True):
        assert source.alignment["own"] == ["classifier.bias", "classifier.weight"]
        assert source.alignment["prefix"] == {"text": "bert.", "in": "source"}
        assert list(source.alignment["heads"]) == [task]
    rows = json.loads(mlflow.artifacts.load_text(f"runs:/{result.version.run_id}/alignment.json"))
    assert {"merge", "own"} == {row["decision"] for row in rows}
    for task, count in LABELS.items():
        found = pulling.pull("models:/merged/1", tmp_path / task, task=task)
        assert found.loaded == "transformers"
        kind = transformers.AutoModelForSequenceClassification
        loaded = kind.from_pretrained(found.folder)
        assert type(loaded) is transformers.BertForSequenceClassification
        assert loaded.config.id2label[count - 1] == f"{task}-{count - 1}"
        assert torch.equal(loaded.classifier.weight, family[task].classifier.weight)
        for name, tensor in expected(family).items():
            torch.testing.assert_close(loaded.bert.state_dict()[name], tensor, atol=1e-6, rtol=0)
    plain = pulling.pull("models:/merged/1", tmp_path / "plain")
    assert plain.loaded == "transformers"


def test_a_vocabulary_is_told_by_the_tokenizer_that_mlflow_keeps(family, tmp_path):
    words = copy.deepcopy(family["words"])
    words.add_tokens(["mango"])
    model = copy.deepcopy(family["fruit"])
    model.resize_token_embeddings(len(words))
    texts.log("bert-mango", model, words)
    result = flow.merge(request(sources=("models:/bert-mango/1", SOURCES[1])))
    assert any("models:/bert-mango/1 added (1 token) is left out" in note for note in result.notes)
    assert verify.verify("models:/merged/1").ok
    assert reproduce.reproduce("models:/merged/1").identical
    found = pulling.pull("models:/merged/1", tmp_path / "mango", task="bert-mango")
    kind = transformers.AutoModelForSequenceClassification
    loaded = kind.from_pretrained(found.folder)
    assert loaded.config.vocab_size == len(family["words"])
    for name, tensor in expected(family).items():
        torch.testing.assert_close(loaded.bert.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_a_task_s_model_has_the_base_s_embedding_that_was_excluded(family, tmp_path):
    torch.manual_seed(1)
    longer = copy.deepcopy(family["fruit"])
    longer.resize_token_embeddings(len(family["words"]) + 3)
    texts.log("bert-longer", longer, family["words"])
    name = "embeddings.word_embeddings.weight"
    settings = recipe.MergeRecipe.from_method("task_arithmetic", sources=1, exclude=(name,))
    flow.merge(request(sources=("models:/bert-longer/1",), recipe=settings))
    found = pulling.pull("models:/merged/1", tmp_path / "pulled", task="bert-longer")
    kind = transformers.AutoModelForSequenceClassification
    loaded, told = kind.from_pretrained(found.folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert torch.equal(loaded.bert.state_dict()[name], family["bert"].state_dict()[name])
    assert torch.equal(loaded.classifier.weight, longer.classifier.weight)


def test_heads_and_tokenizers_come_through_a_server(on_server, tmp_path):
    """The weights are streamed; what lies beside them is asked for by itself."""
    models = register(tmp_path)
    words = copy.deepcopy(models["words"])
    words.add_tokens(["mango"])
    model = copy.deepcopy(models["fruit"])
    model.resize_token_embeddings(len(words))
    texts.log("bert-mango", model, words)
    sources = ("models:/bert-mango/1", SOURCES[1])
    flow.merge(request(sources=sources, registered_model="bert-merged"))
    assert verify.verify("models:/bert-merged/1").ok
    found = pulling.pull("models:/bert-merged/1", tmp_path / "place", task="place")
    kind = transformers.AutoModelForSequenceClassification
    loaded = kind.from_pretrained(found.folder)
    assert torch.equal(loaded.classifier.weight, models["place"].classifier.weight)
    for name, tensor in expected(models).items():
        torch.testing.assert_close(loaded.bert.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_heads_of_classes_without_names_are_recorded(store, tmp_path):
    """Of sources for two tasks; where all are for one, their classes are taken for the same."""
    texts.register(tmp_path)
    alike = (("classifier.bias", "merge"), ("classifier.weight", "merge"))
    for name, doubtful in (("two", True), ("one", False)):
        made = flow.merge(request(registered_model=name))
        assert any("whose classes have no names" in note for note in made.notes) is doubtful
        run = f"runs:/{made.version.run_id}"
        client = mlflow.MlflowClient()
        written = {file.path for file in client.list_artifacts(made.version.run_id)}
        assert ({"alignment.json", "notes.json"} <= written) is doubtful
        if doubtful:
            rows = json.loads(mlflow.artifacts.load_text(f"{run}/alignment.json"))
            assert {row["why"] for row in rows} == {"classes without names"}
            for uri in SOURCES:
                own = [row for row in rows if row["source"] == uri]
                assert tuple((row["tensor"], row["decision"]) for row in own) == alike
            notes = json.loads(mlflow.artifacts.load_text(f"{run}/notes.json"))
            assert notes == list(made.notes)
        assert reproduce.reproduce(made.version.uri).identical
        client.set_model_version_tag("bert-place", "1", "breadcrumbs.task", "fruit")


def test_heads_go_on_through_a_merge_of_merges(family, tmp_path):
    """Under their tasks' names, where the base is the same; else they are left out, and it says."""
    flow.merge(request(sources=SOURCES[:1], registered_model="fruits"))
    sources = ("models:/fruits/1", SOURCES[1])
    result = flow.merge(request(sources=sources))
    assert result.notes == (
        "the names of models:/bert-place/1 have the prefix 'bert.' more",
        "models:/bert-place/1 has 2 tensors of its own, not merged: classifier.bias, "
        "classifier.weight",
    )
    assert resolved(1).tasks == ("fruit", "place")
    assert verify.verify("models:/merged/1").ok
    assert reproduce.reproduce("models:/merged/1").identical
    assert flow.merge(request(sources=sources)).version == result.version
    _, stated = contents.read_statement(resolved(1))
    first = stated.sources[0].alignment
    assert list(first) == ["heads", "merged"]
    assert list(first["heads"]) == ["fruit"]
    base = family["bert"].state_dict()
    states = {task: family[task].bert.state_dict() for task in LABELS}
    kind = transformers.AutoModelForSequenceClassification
    for task, count in LABELS.items():
        found = pulling.pull("models:/merged/1", tmp_path / task, task=task)
        loaded = kind.from_pretrained(found.folder)
        assert loaded.config.id2label[count - 1] == f"{task}-{count - 1}"
        assert torch.equal(loaded.classifier.weight, family[task].classifier.weight)
        for name, tensor in loaded.bert.state_dict().items():
            changes = {task: state[name] - base[name] for task, state in states.items()}
            whole = base[name] + 0.25 * changes["fruit"] + 0.5 * changes["place"]
            torch.testing.assert_close(tensor, whole, atol=1e-6, rtol=0)
    with pytest.raises(errors.MergeError, match=r"fruit/1 both have a head for the task 'fruit'"):
        flow.merge(request(sources=("models:/fruits/1", SOURCES[0]), registered_model="twice"))


def test_heads_that_can_not_go_on_are_named(family):
    """Of a base, and of a merge of another base: said, in the run and in lineage too."""
    flow.merge(request(sources=SOURCES[:1], registered_model="fruits"))
    above = flow.merge(
        request(base="models:/fruits/1", sources=SOURCES[1:], registered_model="above")
    )
    said = "the heads that models:/fruits/1 carries (fruit) are left out, since "
    assert [note for note in above.notes if note.startswith(f"{said}it is the base; to keep them")]
    assert versions.resolve(above.version.uri).tasks == ("place",)
    assert verify.verify(above.version.uri).ok
    other = flow.merge(
        request(base=SOURCES[1], sources=("models:/fruits/1",), registered_model="other")
    )
    (note,) = (note for note in other.notes if note.startswith(said))
    assert note.removeprefix(said).startswith("its tensors are not quite the base's")
    notes = mlflow.artifacts.load_text(f"runs:/{other.version.run_id}/notes.json")
    assert note in json.loads(notes)
    _, stated = contents.read_statement(versions.resolve(other.version.uri))
    assert stated.sources[0].alignment["headsLeftOut"] == ["fruit"]
    assert verify.verify(other.version.uri).ok
    assert versions.resolve(other.version.uri).tasks == ()


def test_a_merge_is_another_one_where_its_heads_are_for_other_tasks(family):
    """What a release made that did not tell them apart is found by its heads."""
    client = mlflow.MlflowClient()
    first = flow.merge(request())
    plain = ancestry_tags.merge_digest(
        request().recipe,
        [entry.weights_digest for entry in contents.read_statement(resolved(1))[1].inputs],
    )
    client.set_model_version_tag("merged", "1", "breadcrumbs.merge_digest", plain)
    client.set_logged_model_tags(resolved(1).model_id, {"breadcrumbs.merge_digest": plain})
    assert verify.verify(first.version.uri).ok
    assert flow.merge(request()).version == first.version
    client.set_model_version_tag("bert-place", "1", "breadcrumbs.task", "city")
    second = flow.merge(request())
    assert not second.reused
    assert resolved(2).tasks == ("fruit", "city")
    assert verify.verify(second.version.uri).ok
    assert flow.merge(request()).version == second.version
    client.set_model_version_tag("bert-place", "1", "breadcrumbs.task", "place")
    assert flow.merge(request()).version == first.version
    client.set_model_version_tag("merged", "2", "breadcrumbs.merge_digest", "sha256:0")
    assert not verify.verify(second.version.uri).ok


def resolved(number):
    """A version of the merged model."""
    return versions.resolve(f"models:/merged/{number}")


def test_heads_go_with_other_dtypes_changes_and_sweeps_and_not_with_parts(family, tmp_path):
    half = copy.deepcopy(family["place"]).to(torch.bfloat16)
    texts.log("bert-half", half, family["words"])
    mlflow.MlflowClient().set_model_version_tag("bert-half", "1", "breadcrumbs.task", "place")
    sources = (SOURCES[0], "models:/bert-half/1")
    flow.merge(request(sources=sources))
    folder = pulling.pull("models:/merged/1", tmp_path / "place", task="place").folder
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.classifier.weight, half.classifier.weight.float())
    masked = recipe.MergeRecipe.from_method("breadcrumbs", sources=2)
    with pytest.raises(errors.MergeError, match="--keep-parts is of no use here: the tensors of"):
        flow.merge(request(recipe=masked, keep_parts=True, registered_model="parts"))
    (tmp_path / "scores.py").write_text(texts.SCORES)
    (tmp_path / "evaluators.yaml").write_text(texts.EVALUATORS)
    words = ["--base", "models:/bert/1", "--sources", ",".join(sources), "--method"]
    words += ["task_arithmetic", "--alpha", "0.25,0.5", "--evaluator", "evaluators.yaml"]
    for arguments, name, tasks in (
        (["merge", "--from", "models:/merged/1", "--remove", SOURCES[0]], "merged/2", ("place",)),
        (["sweep", *words, "--registered-model", "swept"], "swept/1", tuple(LABELS)),
    ):
        answer = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        assert versions.resolve(f"models:/{name}").tasks == tasks
        assert verify.verify(f"models:/{name}").ok


def test_an_adapter_s_head_is_kept(family, tmp_path):
    """On a base without a head, measured with it, and on one that has another."""
    peft = pytest.importorskip("peft")
    (tmp_path / "scores.py").write_text(texts.SCORES)
    (tmp_path / "evaluators.yaml").write_text(
        "tasks:\n- {name: fruit, python: 'scores:accuracy', data: {validation: "
        "fruit-validation.csv, test: fruit-test.csv}}\n"
    )
    torch.manual_seed(2)
    whole = transformers.BertForSequenceClassification(config(family["words"], num_labels=3))
    whole.bert.load_state_dict(family["bert"].state_dict())
    whole.save_pretrained(tmp_path / "trained-on")
    settings = peft.LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS")
    whole = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "trained-on")
    tuned = peft.get_peft_model(whole, settings)
    train(tuned, family["words"], "fruit", 3)
    texts.log("lora-fruit", tuned, family["words"])
    mlflow.MlflowClient().set_model_version_tag("lora-fruit", "1", "breadcrumbs.task", "fruit")
    family["fruit"] = copy.deepcopy(tuned).merge_and_unload()
    sources = ("models:/lora-fruit/1", SOURCES[1])
    evaluator = evaluator_files.read("evaluators.yaml")
    result = flow.merge(request(sources=sources, evaluator=evaluator))
    state = family["fruit"].bert.state_dict()
    found = accuracy(family, "fruit", state)
    assert result.metrics["finetuned_accuracy/fruit"] == pytest.approx(found)
    found = accuracy(family, "fruit", expected(family))
    assert result.metrics["accuracy/fruit"] == pytest.approx(found)
    other = flow.merge(request(base=SOURCES[1], sources=sources[:1], registered_model="other"))
    before = family["place"].bert.state_dict()
    changes = {name: state[name] - tensor for name, tensor in family["bert"].state_dict().items()}
    alone = {name: tensor + 0.5 * changes[name] for name, tensor in before.items()}
    for made, whole in ((result, expected(family)), (other, alone)):
        assert verify.verify(made.version.uri).ok
        assert reproduce.reproduce(made.version.uri).identical
        place = tmp_path / made.version.name
        kind = transformers.AutoModelForSequenceClassification
        folder = pulling.pull(made.version.uri, place, task="fruit").folder
        loaded, told = kind.from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"]
        assert loaded.config.id2label == {number: f"LABEL_{number}" for number in range(3)}
        assert torch.equal(loaded.classifier.weight, family["fruit"].classifier.weight)
        for name, tensor in whole.items():
            torch.testing.assert_close(loaded.bert.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_a_head_that_was_changed_is_found(family, tmp_path):
    flow.merge(request())
    with versions.workspace() as folder:
        opened = versions.open_version(versions.resolve("models:/merged/1"), folder)
        file = opened.folder / "tasks" / "fruit.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"config": {"num_labels": 7}}))
        report = verify.verify("models:/merged/1")
        assert [check.name for check in report.failures] == ["head fruit"]
        file.unlink()
        assert "head fruit" in [check.name for check in verify.verify("models:/merged/1").failures]


def test_each_task_is_measured_with_its_own_head(family, tmp_path):
    (tmp_path / "scores.py").write_text(texts.SCORES)
    lines = ["tasks:"]
    for task in LABELS:
        lines += [f"  - name: {task}", "    python: scores:accuracy"]
        lines += [f"    data: {{validation: {task}-validation.csv, test: {task}-test.csv}}"]
    (tmp_path / "evaluators.yaml").write_text("\n".join(lines))
    (tmp_path / "policy.yaml").write_text("average_normalized_accuracy: 0.01\n")
    evaluator = evaluator_files.read("evaluators.yaml")
    result = flow.merge(request(evaluator=evaluator))
    materials = workbench.Materials("models:/bert/1", SOURCES, evaluator=evaluator, device="cpu")
    with workbench.opened(materials) as study:
        settings = request().recipe
        study.prepare([settings])
        card = study.score(study.merge(settings), (0, 1), split="test")
        found = card.metrics()
        assert found == {name: result.metrics[name] for name in found}
        alone = study.score(study.merge(settings, (1,)), (1,), split="test")
        assert [score.task for score in alone.scores] == ["place"]
    for task in LABELS:
        for kind, state in (
            ("zero_shot_accuracy", family["bert"].state_dict()),
            ("finetuned_accuracy", family[task].bert.state_dict()),
            ("accuracy", expected(family)),
        ):
            found = accuracy(family, task, state)
            assert result.metrics[f"{kind}/{task}"] == pytest.approx(found), (kind, task)
    runner = CliRunner()
    words = ["models:/merged/1", "--evaluator", "evaluators.yaml", "--json"]
    answer = runner.invoke(cli.main, ["evaluate", *words], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    again = {row["task"]: row["accuracy"] for row in json.loads(answer.stdout)["tasks"]}
    assert again == {task: result.metrics[f"accuracy/{task}"] for task in LABELS}
    policy = ["--alias", "champion", "--policy", "policy.yaml"]
    promoted = runner.invoke(cli.main, ["promote", *words[:3], *policy], catch_exceptions=False)
    assert promoted.exit_code == 0, promoted.output
    assert versions.resolve("models:/merged@champion").version == "1"


def test_what_can_not_be_told_apart_is_refused(family, tmp_path):
    (tmp_path / "scores.py").write_text(texts.SCORES)
    several = evaluator_files.read("scores:everything")
    with pytest.raises(errors.EvaluatorError, match="names its tasks itself; give a file"):
        flow.merge(request(evaluator=several))
    mlflow.MlflowClient().set_model_version_tag("bert-place", "1", "breadcrumbs.task", "fruit")
    with pytest.raises(errors.MergeError, match="both have a head for the task 'fruit'"):
        flow.merge(request())
    flow.merge(request(sources=SOURCES[:1], registered_model="one"))
    with pytest.raises(errors.TaskError, match="no head for the task 'sports'; it has fruit"):
        pulling.pull("models:/one/1", tmp_path / "none", task="sports")
