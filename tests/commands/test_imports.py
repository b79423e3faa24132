"""Commands import no more than they need: run as processes on a real store, then looked into."""

import json
import os
import subprocess
import sys

import pytest

from mlflow_breadcrumbs import ledger

MODELS = {"open_clip", "timm", "transformers", "torchvision", "torch._dynamo"}
"""What building a model brings."""
HEAVY = MODELS | {"torch", "numba", "matplotlib", "sklearn", "jsonschema", "safetensors.torch"}
MLFLOW = {"mlflow", "sqlalchemy", "alembic", "requests", "pandas", "pyarrow", "pydantic"}


def imported(tmp_path, *arguments, **environment):
    """The top-level and dotted names of all modules that a command had imported at its end."""
    place = tmp_path / "modules.json"
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import atexit, json, sys\n"
        f"place = {str(place)!r}\n"
        "atexit.register(lambda: open(place, 'w').write(json.dumps(sorted(sys.modules))))\n"
        "from mlflow_breadcrumbs import cli\n"
        "cli.main(prog_name='mlflow-breadcrumbs')\n"
    )
    done = subprocess.run(
        [sys.executable, str(driver), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "output").write_text(done.stdout)
    return set(json.loads(place.read_text()))


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage", "models:/top/1"),
        ("lineage", "models:/top/1", "--format", "mermaid"),
        ("impact", "models:/tiny/1"),
        ("history", "merged"),
        ("ledger", "head"),
        ("ledger", "verify"),
        ("approve", "merged", "--version", "1"),
    ],
    ids=" ".join,
)
def test_what_reads_the_registry_imports_no_torch(family, tmp_path, arguments):
    assert not imported(tmp_path, *arguments, LOGNAME="somebody-else") & HEAVY


def test_a_rollback_imports_no_torch(family, tmp_path):
    for version in ("1", "2"):
        if version == "2":
            again = ("--source", family.sources[0], "--source", family.sources[2])
            merge = ("merge", "--base", family.base, *again, "--registered-model", "merged")
            assert not imported(tmp_path, *merge) & MODELS
        ledger.set_alias("merged", "champion", version)
    assert not imported(tmp_path, "rollback", "merged", "--alias", "champion") & HEAVY


def test_a_merge_without_tasks_a_comparison_and_a_verification_build_no_model(family, tmp_path):
    sources = ("--source", family.sources[0], "--source", f"{family.sources[1]}=0.5")
    merge = ("merge", "--base", family.base, *sources, "--registered-model", "merged", "--json")
    merge += ("--method", "breadcrumbs")
    for more, version, reused in (((), "1", True), (("--alpha", "0.7"), "2", False)):
        assert not imported(tmp_path, *merge, *more) & MODELS
        made = json.loads((tmp_path / "output").read_text())
        assert (made["version"], made["reused"]) == (version, reused)
    assert not imported(tmp_path, "compare", "--base", family.base, *sources) & MODELS
    assert not imported(tmp_path, "verify", family.merged) & MODELS


def test_merging_files_knows_neither_mlflow_nor_models(filled, tmp_path):
    names = ["base", "colours", "tints"]
    base, *sources = (str(filled.folder / f"{name}.safetensors") for name in names)
    listed = [part for source in sources for part in ("--source", source)]
    output = str(tmp_path / "out.safetensors")
    found = imported(tmp_path, "merge-files", "--base", base, *listed, "--output", output)
    assert not found & (MODELS | MLFLOW | {"matplotlib", "sklearn", "jsonschema"})


@pytest.mark.parametrize("command", ["merge", "promote", "import", "lineage"])
def test_a_help_text_waits_for_nothing(tmp_path, command):
    assert not imported(tmp_path, command, "--help") & (HEAVY | MLFLOW | {"numpy"})
