"""What is wrong with a document is told in plain words, whatever is wrong."""

import datetime
import re
import typing

import pydantic
import pytest
import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.promotion import policies

VALUES = (
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), "", "word", "a/b", "1 day"),
    *(datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1), 10**15),
    *([], ["word"], [3], [[]], [True], {}, {"word": 3}, {3: "word"}, {"word": {}}, [{}]),
)
"""Of every kind that YAML has."""
FOREIGN = re.compile(
    r"Input|should|valid |instance|dictionary|integer|string|boolean|tuple|Tuple|_[A-Z]|pydantic"
)
"""Words of pydantic's, and names of ours."""


def paths(kind, above=()):
    """Where a field of a kind of record, or of those in it, may stand."""
    for name, field in kind.model_fields.items():
        yield (*above, name)
        for steps, inner in records(field.annotation):
            yield (*above, name, *steps)
            yield from paths(inner, (*above, name, *steps))


def records(annotation, steps=()):
    """The kinds of record in a type, with the steps to one."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield steps, annotation
    step = {tuple: 0, dict: "name"}.get(typing.get_origin(annotation))
    for inner in typing.get_args(annotation):
        yield from records(inner, steps if step is None else (*steps, step))


def document(path, value):
    """A document that has a value at a path."""
    for step in reversed(path):
        value = [value] if step == 0 else {step: value}
    return yaml.safe_dump(value)


@pytest.mark.parametrize("kind", ["task file", "policy"])
def test_no_fault_is_told_in_words_of_pydantics(kind, tmp_path):
    record, refusal = {
        "task file": (tasks._File, errors.TaskError),
        "policy": (policies.Policy, errors.PolicyError),
    }[kind]
    path, told = tmp_path / "document.yaml", []
    for place in paths(record):
        for value in VALUES:
            path.write_text(document(place, value))
            try:
                tasks.load_tasks(path) if kind == "task file" else policies.load(path)
            except refusal as error:
                told += [(value, str(error).replace(str(path), ""))]
    assert len(told) > 300
    for value, words in told:
        plain = words.replace(repr(value)[:60], "")
        assert not FOREIGN.search(plain), words
        assert "and must be something else" not in words, words


def test_a_value_is_told_once_and_by_the_branch_it_was_meant_for(tmp_path):
    def refused(text):
        (tmp_path / "tasks.yaml").write_text(text)
        with pytest.raises(errors.TaskError) as caught:
            tasks.load_tasks(tmp_path / "tasks.yaml")
        return str(caught.value).partition(".yaml': ")[2]

    text = "tasks:\n  - name: a\n    classes: 5\n"
    assert refused(text) == "line 3: tasks[0].classes: it is 5, and must be a list or a mapping."
    text = "tasks:\n  - name: a\n    classes: [[x], b]\n"
    assert refused(text).startswith("line 3: tasks[0].classes[0]: it is ['x'], and must be a text")
    assert refused(text).count("line") == 1
    text = "tasks:\n  - {name: a}\n  - {name: b, images: 5, limt: 3}\n"
    assert refused(text) == (
        "line 3: tasks[1].images: it is 5, and must be a folder, or a mapping with one of folder, "
        "parquet and torchvision; line 3: tasks[1].limt: there is no such field; did you mean "
        "limit? It has name, classes, templates, images, limit."
    )
