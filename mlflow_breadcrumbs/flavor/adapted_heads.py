"""What an adapter with a head of its own leaves unsaid of the model that it is for.

`peft` saves the head's tensors, and names the class of the model or the kind of its task. How many
classes there are is seen from the head; their names are not known.
"""

import re
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs.engine import adapters

KINDS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""By `peft`'s kind of task, how the names of such classes end."""
ENDING = re.compile(r"(Model|PreTrainedModel|For[A-Z]\w*|LMHeadModel)$")
"""What the name of a class of models ends with, after the name of its kin."""


def renamed(source: adapters.Adapted, read: Mapping[str, str]) -> dict[str, str]:
    """By the backbone's tensor its name in the task's model, where that is another.

    Args:
        source: the adapter on its base.
        read: by the base's tensor, the source's that is read for it.
    """
    return {name: f"{source.further}{theirs}" for name, theirs in read.items() if source.further}


def config(source: adapters.Adapted, base: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the task's model.

    Args:
        source: the adapter on its base.
        base: the base's `config.json`; empty without one.
    """
    found = dict(base)
    if not base:
        return found
    if kind := _class(source.config, base):
        found["architectures"] = [kind]
    rows = [
        source.info(name).shape[0] for name in source.heads if len(source.info(name).shape) == 2
    ]
    if rows and kind and kind.endswith("Classification"):
        labels = [f"LABEL_{number}" for number in range(min(rows))]
        found["id2label"] = {str(number): label for number, label in enumerate(labels)}
        found["label2id"] = {label: number for number, label in enumerate(labels)}
    return found


def declared(config: Mapping[str, Any]) -> dict[str, str]:
    """What MLmodel says of the class that loads it, in place of `peft`'s."""
    named = config.get("architectures")
    return {"pipeline_model_type": str(named[0])} if isinstance(named, list) and named else {}


def _class(adapter: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """The class of the model that an adapter was trained in; `None` where nothing says it."""
    mapping = adapter.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    if isinstance(named, str) and named.isidentifier():
        return named
    ours, ending = base.get("architectures"), KINDS.get(str(adapter.get("task_type")))
    if ending is None or not isinstance(ours, list) or not ours:
        return None
    return f"{ENDING.sub('', str(ours[0]))}{ending}"
