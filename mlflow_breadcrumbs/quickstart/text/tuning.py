"""Fine-tuning for one task: of the layers; embeddings and head stay."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from mlflow_breadcrumbs.quickstart.settings import TextSettings
from mlflow_breadcrumbs.quickstart.text import corpora, encoder
from mlflow_breadcrumbs.support import progress

WARM = 0.1
"""Share of the steps in which the learning rate rises; then it falls to nothing in a line."""


def finetune(
    base: encoder.Encoder,
    task: str,
    texts: Sequence[corpora.Text],
    settings: TextSettings,
    show: progress.Progress = progress.silent,
) -> Any:
    """Give the encoder a head for a task, and train a copy of its layers on the task's texts.

    Args:
        base: Stays as it is.
        task: Its name.
        texts: Of its training.
        settings: Of the quickstart.
        show: Told about each step.

    Returns:
        The fine-tuned `BertForSequenceClassification`.
    """
    model = encoder.with_head(base, texts)
    for fixed in (model.bert.embeddings, model.classifier):
        fixed.requires_grad_(False)
    order = model.config.label2id
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.finetune_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _share(step + 1, settings.finetune_steps)
    )
    batches = _batches(texts, settings)
    with (
        torch.random.fork_rng(devices=[]),
        show(f"fine-tune {task}", total=settings.finetune_steps, unit="steps") as advance,
    ):
        torch.manual_seed(settings.seed)
        model.train()
        for _ in range(settings.finetune_steps):
            batch = next(batches)
            logits = model(**base.inputs([text.content for text in batch])).logits
            wanted = torch.tensor([order[text.label] for text in batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, wanted).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            advance(1)
    return model.requires_grad_(True).eval()


def _share(step: int, steps: int) -> float:
    """Of the highest learning rate, at a step from 1 on."""
    warm = max(1.0, WARM * steps)
    return min(step / warm, (steps - step + 1) / steps)


def _batches(texts: Sequence[corpora.Text], settings: TextSettings) -> Any:
    """Batches without end; every text comes once before any comes again."""
    rng = random.Random(settings.seed)
    waiting: list[corpora.Text] = []
    while True:
        while len(waiting) < settings.finetune_batch:
            waiting += rng.sample(list(texts), len(texts))
        yield waiting[: settings.finetune_batch]
        del waiting[: settings.finetune_batch]
