"""What MkDocs calls while it builds the site: pages that are made, and links.

Made from what there is, so that nothing is listed twice or drifts: a page per command, from what
`--help` shows; a page per module, from its docstrings; and, under `repository/`, copies of the
files outside `docs/` that pages link to. The home page is the README. The names in capitals in the
navigation of `mkdocs.yml` stand for the lists of these pages.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGE = ROOT / "mlflow_breadcrumbs"

BROUGHT_IN = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "MLproject",
    "benchmarks/results/*.md",
    "study/results/**/*.png",
    "workflows/**/*.yaml",
    "workflows/*.sbatch",
    "workflows/*.sh",
)
"""What pages may link to outside `docs/`."""

COMMANDS = """\
# Commands

`mlflow-breadcrumbs COMMAND …`, or `python -m mlflow_breadcrumbs COMMAND …`. Results go to stdout
(most commands have `--json`, and then print nothing else there), progress and messages to stderr.
MLflow is found as usual: `MLFLOW_TRACKING_URI`, or `sqlite:///mlflow.db` in the current folder.
`--quiet` leaves results and errors, `--verbose` adds what is logged; both go before the command or
after it. Where stderr is no terminal, progress is a line per stage and one every half a minute.

| exit code | |
|---|---|
| 0 | done |
| 1 | bad input, or a failed job |
| 2 | usage |
| 3 | a gate or a verification said no |

| command | |
|---|---|
"""

LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the made pages into the navigation."""
    lists = {
        "COMMANDS": ["reference/commands/index.md", *map(_command_page, commands())],
        "MODULES": _tree(modules()),
        "BENCHMARKS": [
            _place(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
        ],
    }

    def filled(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: filled(value) for title, value in entry.items()}
        if isinstance(entry, list):
            return [filled(value) for value in entry]
        return lists.get(entry, entry)

    config.nav = filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages, bring in the files."""
    for pattern in BROUGHT_IN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    made = {"reference/commands/index.md": command_list()}
    made |= {_command_page(name): command_text(name) for name in commands()}
    made |= {_module_page(name): module_text(name) for name in modules()}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links right for the site; they are written for the files as they lie in the repository.

    A link to a file that is not brought in stays as it is, and MkDocs complains.
    """
    source = page.file.src_uri
    origin = _origin(source)

    def right(match: re.Match[str]) -> str:
        target = (origin.parent / match["path"]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]
        return os.path.relpath(_place(target), Path(source).parent) + (match["anchor"] or "")

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(right, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(right, markdown[last:])])


def _place(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def _origin(place: str) -> Path:
    """The file of the repository that a page was made from."""
    if place == "index.md":
        return ROOT / "README.md"
    if place.startswith("repository/"):
        return ROOT / place.removeprefix("repository/")
    return DOCS / place


# Commands


def commands() -> dict[str, click.Command]:
    """The commands by name, in the order of `--help`."""
    sys.path.insert(0, str(ROOT))
    try:
        from mlflow_breadcrumbs import cli
    finally:
        sys.path.remove(str(ROOT))
    context = click.Context(cli.main, info_name="mlflow-breadcrumbs")
    return {name: cli.main.commands[name] for name in cli.main.list_commands(context)}


def _command_page(name: str) -> str:
    return f"reference/commands/{name}.md"


def command_list() -> str:
    """The page that lists the commands."""
    rows = [
        f"| [`{name}`]({name}.md) | {_cell(command.get_short_help_str(300))} |"
        for name, command in commands().items()
    ]
    return COMMANDS + "\n".join(rows) + "\n"


def command_text(name: str) -> str:
    """The page of a command, and of those below it if it is a group."""
    lines = [f"# {name}", ""]
    for path, context in _walk(name):
        if len(path) > 1:
            lines += [f"## {' '.join(path)}", ""]
        lines += _described(context)
    return "\n".join(lines) + "\n"


def _walk(name: str) -> Iterator[tuple[list[str], click.Context]]:
    root = click.Context(click.Group("main"), info_name="mlflow-breadcrumbs")
    waiting = [([name], root, commands()[name])]
    while waiting:
        path, parent, command = waiting.pop(0)
        context = click.Context(command, info_name=path[-1], parent=parent)
        yield path, context
        if isinstance(command, click.Group):
            names = command.list_commands(context)
            waiting = [([*path, sub], context, command.commands[sub]) for sub in names] + waiting


def _described(context: click.Context) -> Iterator[str]:
    """The help of a command in Markdown: its words, its usage, its options."""
    command = context.command
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.lstrip().startswith("\b"):
            kept = paragraph.lstrip().removeprefix("\b").strip("\n")
            yield from ("```bash", kept, "```", "")
        else:
            yield from (_cell(paragraph, table=False), "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{context.command_path} {usage}", "```", "")
    records = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    yield from ("| option | |", "|---|---|")
    for names, words in records:
        yield f"| `{names.replace('|', chr(92) + '|')}` | {_cell(words)} |"
    yield ""


def _cell(text: str, *, table: bool = True) -> str:
    """Words of a help text on one line, safe from being taken for HTML or Markdown."""
    line = " ".join(text.split())
    parts = line.split("`")  # what stands between backticks is code already
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([<*_\[\]])", r"\\\1", parts[number])
    line = "`".join(parts)
    return line.replace("|", "\\|") if table else line


# Modules


def modules() -> list[str]:
    """Every module of the package that a user may import, by its dotted name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return sorted(found)


def _module_page(name: str) -> str:
    """Of a package the page that opens its section."""
    path = name.replace(".", "/")
    return (
        f"reference/python/{path}/index.md"
        if (ROOT / path).is_dir()
        else (f"reference/python/{path}.md")
    )


def module_text(name: str) -> str:
    """A page that mkdocstrings fills."""
    return f"# {name.removeprefix('mlflow_breadcrumbs.')}\n\n::: {name}\n"


def _tree(names: list[str]) -> list[Any]:
    """The modules as a nested navigation, each package a section that begins with itself."""
    top: list[Any] = []
    sections: dict[str, list[Any]] = {"": top}
    for name in names:
        parent, _, last = name.rpartition(".")
        place = sections.get(parent, top)
        if (ROOT / name.replace(".", "/")).is_dir():
            sections[name] = [_module_page(name)]
            if parent:
                place.append({last: sections[name]})
            else:  # the package itself opens the section `Python`
                sections[name] = top
                top.append(_module_page(name))
        else:
            place.append({last: _module_page(name)})
    return top
