"""Each dependency is named alike in pyproject.toml, conda.yaml and the table in the docs."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0]


def test_every_dependency_has_its_line():
    table = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    first = (line.split("|")[1] for line in table.splitlines() if line.startswith("| "))
    described = {each.strip() for cell in first for each in cell.split(",")} - {"package"}
    extras = PROJECT["optional-dependencies"].values()
    needed = {name(each) for group in (PROJECT["dependencies"], *extras) for each in group} - {
        PROJECT["name"]
    }
    assert described == needed


def test_conda_names_nothing_that_the_project_does_not():
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))
    (pip,) = (each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    # MLflow brings the rest: starlette, uvicorn, flask.
    assert set(pip) <= set(PROJECT["dependencies"])
    missing = {name(each) for each in set(PROJECT["dependencies"]) - set(pip)}
    assert missing == {"starlette", "uvicorn", "flask"}
