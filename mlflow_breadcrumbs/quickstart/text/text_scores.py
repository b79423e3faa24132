"""How the quickstart's models are measured: a copy lies beside its texts, for you to change.

`evaluators.yaml` names the function below for every task. It is asked of the base, of the sources
and of every merge, each as the folder of an MLflow model.
"""

import csv
from pathlib import Path

import mlflow
import torch

BATCH = 64
"""Texts that are looked at together."""


def accuracy(folder: str, data: Path) -> dict[str, float]:
    """The fraction of texts whose class is the model's first choice.

    Args:
        folder: An MLflow model of `mlflow.transformers`, with the head of the task.
        data: A CSV file with the columns `text` and `label`.
    """
    parts = mlflow.transformers.load_model(folder, return_type="components")
    model, tokenizer = parts["model"].eval(), parts["tokenizer"]
    with Path(data).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        contents = [row["text"] for row in batch]
        inputs = tokenizer(contents, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            chosen = model(**inputs).logits.argmax(dim=1).tolist()
        right += sum(
            model.config.id2label[choice] == row["label"]
            for choice, row in zip(chosen, batch, strict=True)
        )
    return {"accuracy": right / len(rows), "n": len(rows)}
