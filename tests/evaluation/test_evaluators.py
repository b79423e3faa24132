"""What `--evaluator` names, and what it is refused for; what an evaluator says, held to limits."""

import json
import sys

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import evaluator_files, evaluators, examiners, grading

MODULE = """
def plain(folder):
    return 0.5

def several(folder, split, task=None):
    return {"one": 0.25, "two": {"metric": "loss", "value": 3, "greater_is_better": False,
            "range": [0, None], "n": 4}}

def echo(folder, **given):
    return {"value": 0.5, "n": len(given)}

def strange(folder, colour):
    return 1

def late(folder):
    import own_helper

    return own_helper.VALUE

constant = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "data.csv").write_text("text,label\na,0\n")
    (tmp_path / "dev.csv").write_text("text,label\nb,0\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_module", None)


def file(here, *entries):
    (here / "own.yaml").write_text(json.dumps({"tasks": list(entries)}))
    return evaluator_files.read("own.yaml")


def grade(own, here, split="test", tasks=()):
    subject = examiners.Examined("models:/m/1", here / "weights.safetensors", folder=here)
    return grading.Grader(own, split).examine(subject, tasks)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("own_module:nothing", "can't be imported from .*has no attribute 'nothing'; give MODULE"),
        ("nowhere_at_all:plain", "ModuleNotFoundError"),
        ("own_module:strange", "can't be called with the folder of a model"),
        ("own_module:constant", "can't be called with the folder of a model"),
        ("cmd:", "names no program"),
        ("cmd:no-such-program-here {model}", "there is no program 'no-such-program-here'"),
        ("cmd:echo 0.5", "looks at no model: have {model}"),
        ("cmd:echo 'a", "has no words"),
        ("models:/m/1", "is an address, and an evaluator is code that only you name"),
        ("runs:/abc/evaluators.yaml", "is an address"),
        ("https://example.org/own.yaml", "is an address"),
        ("nowhere.yaml", "can't be read"),
        ("accuracy", "is unknown; give module:function, 'cmd: PROGRAM"),
    ],
)
def test_what_is_no_evaluator(here, given, words):
    with pytest.raises(errors.EvaluatorError, match=words):
        evaluator_files.read(given)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "a"}, "give exactly one of python, command, mlflow and genai"),
        ({"name": "a", "python": "own_module:plain", "command": "x"}, "give exactly one of"),
        ({"name": "a/b", "python": "own_module:plain"}, "is not of the form"),
        ({"name": "a", "pyhton": "own_module:plain"}, "did you mean python"),
        ({"name": "a", "python": "os.system"}, "give MODULE:FUNCTION"),
        ({"name": "a", "python": "own_module:plain", "metric": "f1", "range": [1, 0]}, "is empty"),
        ({"name": "a", "python": "own_module:plain", "seconds": 0}, "must be above 0"),
        ({"name": "a", "python": "own_module:plain", "data": "none.csv"}, "is not there"),
        (
            {
                "name": "a",
                "python": "own_module:plain",
                "metric": "f1",
                "range": [0, 2],
                "counted": True,
            },
            "what is counted is a fraction",
        ),
        ({"name": "a", "mlflow": {"metric": "f1_score", "targets": "y"}}, "has no data"),
        (
            {"name": "a", "mlflow": {"metric": "f1_score"}},
            "tasks\\[0\\].mlflow.targets: it is missing",
        ),
    ],
)
def test_a_file_that_is_refused(here, entry, words):
    with pytest.raises(errors.EvaluatorError, match=words):
        file(here, entry)


def test_a_task_that_is_there_twice(here):
    entry = {"name": "a", "python": "own_module:plain"}
    with pytest.raises(errors.EvaluatorError, match="the task a is there twice"):
        file(here, entry, entry)


def test_a_declared_task_with_its_data(here):
    own = file(here, {"name": "a", "python": "own_module:echo", "data": "data.csv"})
    found = grade(own, here)["a"]
    assert (found.value, found.total, found.correct) == (0.5, 4, 2)  # all that it may be given
    assert found.image_set == "data.csv"
    before = found.dataset_digest
    (here / "data.csv").write_text("text,label\nc,0\n")
    assert grade(own, here)["a"].dataset_digest != before
    with pytest.raises(errors.EvaluatorError, match="has no data for the validation split"):
        grade(own, here, "validation")
    with pytest.raises(errors.EvaluatorError, match="has no data for the validation split"):
        own.exams[0].check_splits()


def test_a_function_that_imports_what_lies_beside_it_when_it_is_called(here, monkeypatch):
    (here / "own_helper.py").write_text("VALUE = 0.75")
    own = file(here, {"name": "a", "python": "own_module:late"})
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert grade(own, here)["a"].value == 0.75
    assert str(here) not in sys.path


def test_modules_of_one_name_in_two_folders_are_two(here):
    for name in ("one", "two"):
        (here / name).mkdir()
        (here / name / "own_scores.py").write_text(f"def f(model):\n    return '{name}'\n")
    places = ("one", "two", "one")
    found = [evaluators.imported("own_scores:f", here / name).call("") for name in places]
    assert found == [*places]


def test_a_function_that_names_its_tasks(here):
    own = evaluator_files.read("own_module:several")
    found = grade(own, here)
    assert found["one"].scale.metric == "one"
    assert (found["two"].value, found["two"].total, found["two"].correct) == (3.0, 4, None)
    assert found["two"].interval() is None
    assert found["one"].dataset_digest == found["one"].evaluator_digest  # the data are its own
    own.exams[0].check_splits()  # it takes `split`
    with pytest.raises(errors.EvaluatorError, match="says nothing of three for models:/m/1"):
        grade(own, here, tasks=["three"])


def test_the_digest_of_an_evaluator_is_that_of_its_code(here):
    before = evaluator_files.read("own_module:plain").digest
    assert evaluator_files.read("own_module:plain").digest == before
    (here / "own_module.py").write_text(MODULE + "\n# another\n")
    assert evaluator_files.read("own_module:plain").digest != before
    command = evaluators.program([sys.executable, "own_module.py", "{model}"], here)
    assert set(command.files()) == {"own_module.py"}


def test_a_programs_places_are_filled_and_nothing_else(here):
    script = "import json, sys; print(json.dumps({'accuracy': 1, 'n': len(sys.argv[1])}))"
    words = [sys.executable, "-c", script, "{split}{none}{", "{model}"]
    own = file(here, {"name": "a", "command": words})
    assert grade(own, here)["a"].total == len("test{none}{")


def test_a_file_is_only_read_from_this_machine(here):
    own = file(here, {"name": "a", "python": "own_module:plain"})
    assert own.tasks == ("a",)
    assert grade(own, here)["a"].value == 0.5
    with pytest.raises(errors.EvaluatorError, match="has no task 'b'; it has a"):
        grade(own, here, tasks=["b"])
