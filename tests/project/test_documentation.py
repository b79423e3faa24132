"""The documentation: its blocks of code are run, and it says something of every command.

Each page is read in a store of tiny models that have the names that the pages use, `clip`,
`clip-cars`, … in the folder itself and `demo-clip`, … in `demo/`, where `make demo` puts its own.
Its blocks are run from top to bottom. What can't be run says why, in a comment right above it.
"""

import dataclasses
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import tiny
import yaml
import zoos
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import mergekit_files, recipe
from mlflow_breadcrumbs.evaluation import evaluator_files
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.promotion import policies, promote
from mlflow_breadcrumbs.search import grids
from mlflow_breadcrumbs.sources import importing

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
RUN = ("bash", "console", "python", "yaml")
SHOWN = ("text", "json", "")
"""Blocks that show something, and are nothing to run."""
CLASSES = ("sedan", "van", "truck")
ARCHITECTURE = {"ViT-B-32": "tiny.json"}
"""What the pages write, and the small one that is taken for it."""
NEAR = 0.002
"""How far a fine-tuned model is from its base: no merge loses a test image, so none is refused."""
JUDGED = ("promote", "recheck")
"""Commands that judge: the tiny models may be refused by limits that were written for real ones."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    """Why it isn't run."""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = re.fullmatch(r"\s*```(\S*)", lines[number])
        number += 1
        if fence is None:
            continue
        start = number
        while lines[number].strip() != "```":
            number += 1
        above = lines[start - 2].strip() if start > 1 else ""
        reason = re.fullmatch(r"<!-- not run: (.+) -->", above)
        code = "\n".join(lines[start:number]) + "\n"
        yield Block(page, start + 1, fence[1], code, reason[1] if reason else None)
        number += 1


def to_run(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN and block.reason is None]


def test_the_blocks_are_in_languages_that_are_known():
    found = [block for page in PAGES for block in blocks(page)]
    strange = [(b.page, b.line, b.language) for b in found if b.language not in RUN + SHOWN]
    assert not strange
    assert not [(b.page, b.line) for b in found if b.language in SHOWN and b.reason]
    assert len([b for b in found if b.language in RUN and b.reason is None]) > 40


# The store


def fill(folder: Path, prefix: str, names: tuple[str, ...], task_file: Path) -> tuple[str, ...]:
    """A base, `PREFIX-clip` or `clip`, and a fine-tuned version per task; their URIs."""
    config = tiny.config_file(folder)
    listed = []
    for number, name in enumerate(names):
        for place, (kind, colour) in enumerate(zip(CLASSES, tiny.COLOURS, strict=True)):
            images = task_file.parent / "data" / name / kind
            images.mkdir(parents=True)
            for index, pixels in enumerate(tiny.pixels(colour, 10, 10 * number + place)):
                Image.fromarray(pixels).save(images / f"{index}.png")
        images = {"folder": f"data/{name}"}
        listed.append({"name": name, "classes": list(CLASSES), "images": images})
    task_file.write_text(yaml.safe_dump({"tasks": listed}))
    task_list = tasks.load_tasks(task_file)
    base = tiny.model(tiny.config(folder)).state_dict()
    save_file({name: part.contiguous() for name, part in base.items()}, folder / "base.safetensors")
    versions = []
    for number, name in enumerate(("clip", *names)):
        tuned = tiny.model(tiny.config(folder), seed=number).state_dict()
        state = {
            key: base[key] + NEAR * (tuned[key] - base[key])
            if key.startswith("visual.") and base[key].is_floating_point()
            else base[key]
            for key in base
        }
        path = folder / f"{name}.safetensors"
        save_file({key: part.contiguous() for key, part in state.items()}, path)
        imported = importing.import_checkpoint(
            str(path),
            architecture_name=config,
            registered_model=name if not prefix and not number else f"{prefix or 'clip'}-{name}",
            task=name if number else None,
            task_list=task_list,
        )
        versions.append(imported.uri)
    return tuple(versions)


def merge(versions: tuple[str, ...], name: str, alias: str, method: str, task_file: Path) -> str:
    """Merge what `fill` made; the version's URI."""
    request = flow.MergeRequest(
        base=versions[0],
        sources=versions[1:],
        registered_model=name,
        recipe=recipe.MergeRecipe.from_method(method, sources=len(versions) - 1),
        tasks=str(task_file),
        alias=alias,
        device="cpu",
    )
    return flow.merge(request).version.uri


@pytest.fixture(scope="session")
def written(tmp_path_factory, empty_database) -> Path:
    """The folder in which the pages' readers are, made once; pages take copies."""
    folder = tmp_path_factory.mktemp("documentation")
    before, here = mlflow.get_tracking_uri(), os.getcwd()
    for part in ("demo", "."):
        place = folder / part
        place.mkdir(exist_ok=True)
        shutil.copy(empty_database, place / "mlflow.db")
        os.chdir(place)
        zoos.use(f"sqlite:///{place.resolve()}/mlflow.db")
        if part == "demo":
            (place / "tasks").mkdir()
            task_file = place / "tasks" / "tasks.yaml"
            versions = fill(place, "demo", ("letters", "greek", "cyrillic"), task_file)
            merge(versions, "demo-merged", "candidate", "breadcrumbs", task_file)
            continue
        task_file = place / "tasks.yaml"
        versions = fill(place, "", ("cars", "signs", "birds"), task_file)
        shutil.copy(task_file, place / "fresh.yaml")
        shutil.copy(place / "data" / "cars" / "van" / "0.png", place / "photo.png")
        for method in ("breadcrumbs_signed", "breadcrumbs"):
            merged = merge(versions[:3], "clip-merged", "candidate", method, task_file)
            rules = policies.parse("evidence: {min_images: 1}")
            promote.promote(promote.PromotionRequest(merged, "champion", rules))
    os.chdir(here)
    zoos.use(before)
    return folder


@pytest.fixture
def reader(written, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the folder of a page's own; its store is in use."""
    folder = tmp_path / "reader"
    shutil.copytree(written, folder)
    (folder / "workflows").symlink_to(ROOT / "workflows")
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    for database in (folder / "mlflow.db", folder / "demo" / "mlflow.db"):
        with sqlite3.connect(database) as connection:
            for table, column in columns.items():
                connection.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                    (str(written), str(folder)),
                )
    monkeypatch.chdir(folder)
    previous = mlflow.get_tracking_uri()
    zoos.use(f"sqlite:///{folder}/mlflow.db")
    yield folder
    assert mlflow.active_run() is None
    zoos.use(previous)


# Running


def run_bash(block: Block, folder: Path, environment: pytest.MonkeyPatch) -> None:
    """Each command by itself: ours in this process, which spares seconds, `openssl` in a shell."""
    code = block.code
    if block.language == "console":
        code = "\n".join(line[2:] for line in code.splitlines() if line.startswith("$ "))
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        expected = re.search(r"# exit code (\d)$", line)
        words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
        words = [ARCHITECTURE.get(word, word) for word in words]
        if not words:
            continue
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            if name == "MLFLOW_TRACKING_URI":
                zoos.use(value.replace("sqlite:///", f"sqlite:///{folder}/"))
            else:
                environment.setenv(name, value)
        elif words[0] == "openssl":
            subprocess.run(words, check=True, capture_output=True)
        elif words[0] == "mlflow-breadcrumbs":
            environment.setenv("LOGNAME", "ann" if words[1] == "approve" else "ben")
            done = CliRunner().invoke(cli.main, words[1:])
            sys.stdout.write(f"$ {line}\n{done.output}\n")  # what pytest shows of a failure
            codes = {int(expected[1])} if expected else {0, 3} if words[1] in JUDGED else {0}
            assert done.exit_code in codes, f"{line}\n{done.output}\n{done.exception!r}"
        else:
            pytest.fail(f"{line}: not a command that is run here; say why above the block")


def run_yaml(block: Block, folder: Path) -> None:
    """Read it with the loader for what it is; keep it where the page names a file."""
    named = re.match(r"# (\S+\.yaml)\n", block.code)
    path = folder / (named[1] if named else "block.yaml")
    path.write_text(block.code)
    content = yaml.safe_load(block.code)
    if "merge_method" in content:
        mergekit_files.read(path)
    elif path.name == "evaluators.yaml":
        evaluator_files.read(str(path))
    elif isinstance(content.get("tasks"), list):
        tasks.load_tasks(path)
    elif set(content) <= {field.name for field in dataclasses.fields(recipe.MergeRecipe)}:
        grids.load(path)
    else:
        policies.load(path)


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)])
def test_the_blocks_of_a_page_run(page, reader, monkeypatch):
    names: dict[str, Any] = {}
    for block in to_run(page):
        try:
            if block.language == "python":
                if named := re.match(r"# (\S+\.py)\n", block.code):
                    (reader / named[1]).write_text(block.code)
                exec(compile(block.code, f"{page}, line {block.line}", "exec"), names)
            elif block.language == "yaml":
                run_yaml(block, reader)
            else:
                run_bash(block, reader, monkeypatch)
        except Exception as error:
            error.add_note(f"in {page}, line {block.line}")
            raise


@pytest.mark.slow
def test_the_site_builds_and_takes_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.main.commands:
        assert (tmp_path / "reference" / "commands" / f"{name}.html").exists()
    fetched = re.compile(
        r"""<(?:script|img|iframe)[^>]* src=["']?(?:https?:)?//|"""
        r"""<link(?![^>]*canonical)[^>]* href=["']?(?:https?:)?//|class="mermaid"""
    )
    for page in tmp_path.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page


# The commands


def everything(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by what is typed."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from everything(below, (*path, name))


@pytest.mark.parametrize(("typed", "command"), list(everything(cli.main))[1:])
def test_every_command_explains_itself(typed, command):
    done = CliRunner().invoke(cli.main, [*typed.split(), "--help"])
    assert done.exit_code == 0
    assert "\\b" not in done.output
    assert command.help
    assert command.get_short_help_str(200)
    lacking = [
        option.opts for option in command.params if isinstance(option, click.Option)
        if not option.help
    ]  # fmt: skip
    assert not lacking


def test_the_readme_and_the_pages_name_every_command():
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    overview = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.main.commands:
        assert f"mlflow-breadcrumbs {name} " in pages, name
        assert f"`{name}`" in overview, name


def test_the_readme_is_an_introduction():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_entry_point_of_the_project_is_named():
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    page = (ROOT / "docs/how-to/mlflow-projects.md").read_text(encoding="utf-8")
    for name in project["entry_points"]:
        assert f"`{name}`" in page
    assert len(project["entry_points"]) == 16, "the README says fifteen further ones"
