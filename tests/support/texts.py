"""Tiny text classifiers of `transformers`, trained for a second, logged by MLflow's own flavor."""

import csv
import random
from pathlib import Path

import mlflow
import torch
import transformers

THINGS = {
    "fruit": (("apple", "pear", "plum"), ("carrot", "leek", "bean"), ("bread", "rice", "oats")),
    "place": (("paris", "rome", "oslo"), ("rhine", "nile", "tiber"), ("alps", "andes", "urals")),
}
"""Per task the words of each class."""
FILLER = ("the", "a", "some", "old", "green", "far")
SOURCES = tuple(THINGS)


def examples(task: str, count: int, seed: int) -> list[tuple[str, int]]:
    """Short texts with their classes, drawn at random."""
    draw = random.Random(f"{task} {seed}")
    found = []
    for number in range(count):
        label = number % len(THINGS[task])
        words = [*draw.sample(FILLER, 2), draw.choice(THINGS[task][label])]
        draw.shuffle(words)
        found.append((" ".join(words), label))
    return found


def write(folder: Path) -> None:
    """A file `TASK-SPLIT.csv` with the columns `text` and `label` per task and split."""
    for task in THINGS:
        for seed, split in enumerate(("validation", "test")):
            with (folder / f"{task}-{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("text", "label"))
                writer.writerows(examples(task, 30, seed))


def tokenizer(folder: Path) -> "transformers.PreTrainedTokenizerBase":
    """Of whole words."""
    words = [word for kinds in THINGS.values() for kind in kinds for word in kind]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *FILLER, *words]) + "\n")
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))


def train(
    model: torch.nn.Module, words: "transformers.PreTrainedTokenizerBase", task: str, steps: int
) -> None:
    """A few steps on texts of a task."""
    texts, labels = zip(*examples(task, 60, 2), strict=True)
    inputs = words(list(texts), return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
    model.eval()


def register(folder: Path, *, tags: bool = True) -> tuple[str, ...]:
    """A base and a fine-tuned version per task, with the tag of its task; their URIs."""
    write(folder)
    words = tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    base = transformers.BertForSequenceClassification(config).eval()
    uris = [log("bert", base, words)]
    for task in SOURCES:
        tuned = transformers.BertForSequenceClassification(config)
        tuned.load_state_dict(base.state_dict())
        train(tuned, words, task, 40)
        uris.append(log(f"bert-{task}", tuned, words))
        if tags:
            name = f"bert-{task}"
            client = mlflow.MlflowClient()
            client.set_model_version_tag(name, "1", "breadcrumbs.task", task)
    return tuple(uris)


def log(
    name: str,
    model: torch.nn.Module,
    words: "transformers.PreTrainedTokenizerBase",
    task: str = "text-classification",
) -> str:
    """One version by MLflow's own flavor."""
    with mlflow.start_run():
        mlflow.transformers.log_model(
            {"model": model, "tokenizer": words},
            name="model",
            task=task,
            registered_model_name=name,
            pip_requirements=["torch", "transformers"],
        )
    return f"models:/{name}/1"


SCORES = """
import csv
import json
import sys
import warnings

import mlflow
import torch


def predictions(folder, data):
    parts = mlflow.transformers.load_model(str(folder), return_type="components")
    with open(data, newline="") as file:
        rows = list(csv.DictReader(file))
    inputs = parts["tokenizer"]([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = parts["model"](**inputs).logits
    return logits, torch.tensor([int(row["label"]) for row in rows])


def accuracy(folder, data):
    logits, labels = predictions(folder, data)
    right = (logits.argmax(dim=1) == labels).float().mean().item()
    return {"accuracy": right, "n": len(labels)}


def loss(folder, data):
    logits, labels = predictions(folder, data)
    return torch.nn.functional.cross_entropy(logits, labels).item()


def everything(folder, split):
    found = {}
    for task in ("fruit", "place"):
        logits, labels = predictions(folder, f"{task}-{split}.csv")
        right = int((logits.argmax(dim=1) == labels).sum())
        found[task] = {"metric": "accuracy", "value": right / len(labels), "n": len(labels)}
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        found[f"{task}-loss"] = {
            "metric": "loss", "value": loss, "greater_is_better": False, "range": [0, None]
        }
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(accuracy(sys.argv[1], sys.argv[2])))
"""
"""A user's module."""

EVALUATORS = """
tasks:
  - name: fruit
    python: scores:accuracy
    data: {validation: fruit-validation.csv, test: fruit-test.csv}
  - name: place
    python: scores:loss
    metric: loss
    greater_is_better: false
    range: [0, .inf]
    data: {validation: place-validation.csv, test: place-test.csv}
"""
"""A user's file of evaluators: an accuracy with an interval, and a loss without end."""
