"""The house rules, read off the source: data flows one way, and few modules know MLflow."""

import ast
from pathlib import Path

import pytest

import mlflow_breadcrumbs

PACKAGE = Path(mlflow_breadcrumbs.__file__).parent

LAYERS = (
    ("errors", "progress", "processes", "scratch", "graph"),
    ("canonical", "device", "extras", "layer_groups", "requirements", "tables", "webhooks"),
    ("builder",),
    ("recipe",),
    ("grids",),
    ("masks", "checkpoints", "records", "image_sets", "stores", "failures"),
    ("artifacts",),
    ("writing",),
    ("backends",),
    ("agreement",),
    ("merge", "architecture", "tasks", "advice"),
    ("files", "features"),
    ("heads",),
    ("registry", "evaluate", "statement", "serving", "signing", "subscription"),
    ("flavor", "training", "datasets", "catalog", "jobs", "registration"),
    ("ledger",),
    ("receiver", "timeline"),
    ("cache", "frames"),
    ("meter", "bench"),
    ("carry", "scorecard", "finetune", "lineage", "drawing", "recovery"),
    ("importer", "inputs", "difference"),
    ("compare",),
    ("pictures", "charts"),
    ("logbook", "study"),
    ("evaluation", "evaluator", "report"),
    ("page",),
    ("pipeline", "evidence", "sweep_runs", "scaling", "blame"),
    ("verify", "reproduce", "sweep"),
    ("attest", "promotion", "trail"),
    ("quickstart",),
    ("options", "terminal"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up; a module imports only from layers below its own."""

KNOWS_MLFLOW = {
    "artifacts",
    "carry",
    "catalog",
    "datasets",
    "evaluation",
    "evaluator",
    "evidence",
    "failures",
    "finetune",
    "flavor",
    "importer",
    "jobs",
    "ledger",
    "logbook",
    "promotion",
    "quickstart",
    "recovery",
    "registration",
    "registry",
    "requirements",
    "serving",
    "stores",
    "subscription",
    "sweep_runs",
    "tasks",  # task files may lie in a run's artifacts
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    """The name by which a file counts: packages count as one."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Every module that a file imports, at the top or inside functions, fully dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    height = {module: level for level, modules in enumerate(LAYERS) for module in modules}
    module = module_of(path)
    if module == "__init__":
        return
    assert module in height, f"{module} has no layer; give it one in LAYERS"
    for name in imports(path):
        if not name.startswith("mlflow_breadcrumbs."):
            continue
        other = name.split(".")[1]
        if other == module or other.startswith("__version"):
            continue
        assert height.get(other, -1) < height[module], f"{module} imports {other}, above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_a_few_modules_know_mlflow(path):
    knows = any(name.split(".")[0] == "mlflow" for name in imports(path))
    assert not knows or module_of(path) in KNOWS_MLFLOW


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_does_not_print(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not any(isinstance(name, ast.Name) and name.id == "print" for name in called)
