"""A version is named in one way, in every command and function that takes one."""

import json

import click
import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors, flavor
from mlflow_breadcrumbs.commands import addresses
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.pipeline import changing, flow
from mlflow_breadcrumbs.registry import uris, versions

FORMS = {
    "clip/3": "models:/clip/3",
    "models:/clip/3": "models:/clip/3",
    "clip@best": "models:/clip@best",
    "models:/clip@best": "models:/clip@best",
    "a name/3": "models:/a name/3",
    "a@b@best": "models:/a@b@best",
    "models:/m-0a1b": "models:/m-0a1b",
    "models:/clip/latest": "models:/clip/latest",
}
WRONG = (
    "clip",
    "clip/best",
    "clip@",
    "@best",
    "a/b/3",
    "runs:/a/3",
    "models:/clip",
    "C:/3",
    "m-0a",
)
AFTER_PARSING = {("promote", "name"), ("approve", "name"), ("recheck", "target")}
"""What may also be a registered model's name, or must be by an alias; a test of their own."""
OF_FILES = ("merge-files", "plan", "work", "finish")
"""Commands that know no versions."""
NO_VERSION = {
    ("import", "checkpoint"): "a file",
    ("list", "name"): "a registered model",
    ("pull", "folder"): "a folder",
    ("rollback", "name"): "a registered model",
    ("history", "name"): "a registered model",
    ("watch", "names"): "registered models",
}
"""Arguments that take something else."""


def parameters():
    """Every parameter of every command that takes versions, by what is typed."""

    def below(command, path=()):
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from below(each, (*path, name))
        else:
            yield from ((path, parameter) for parameter in command.params)

    for path, parameter in below(cli.main):
        name = (parameter.metavar or parameter.name).upper()
        is_argument = isinstance(parameter, click.Argument)
        about_versions = is_argument or ("URI" in name and parameter.name != "ledger_uri")
        taken = isinstance(parameter.type, (addresses.VersionType, addresses.SourceType))
        if about_versions or taken or parameter.name in ("base", "sources", "source_list"):
            elsewhere = path[0] in OF_FILES or (path[0], parameter.name) in AFTER_PARSING
            if (*path, parameter.name) not in NO_VERSION and not elsewhere:
                yield pytest.param(path, parameter, id=f"{' '.join(path)} {parameter.name}")


@pytest.mark.parametrize(("path", "parameter"), list(parameters()))
def test_every_parameter_takes_every_form_and_refuses_others(path, parameter):
    for given, meant in FORMS.items():
        taken = parameter.type.convert(given, parameter, None)
        assert taken in (meant, (meant, None), [meant], [(meant, None)])
    for given in WRONG:
        typed = parameter.opts[0] if isinstance(parameter, click.Option) else None
        done = CliRunner().invoke(cli.main, [*path, *([typed, given] if typed else [given] * 2)])
        assert done.exit_code == 1
        assert done.stderr == f"Error: {given!r} names no version; write {uris.FORMS}\n"


def test_a_weight_is_not_part_of_the_address():
    def taken(text):
        return addresses.SourceType().convert(text, None, None)

    assert taken("clip/3=0.5") == taken("models:/clip/3=0.5") == ("models:/clip/3", 0.5)
    assert taken("clip@best=0") == ("models:/clip@best", 0)
    assert taken("a=b@best") == ("models:/a=b@best", None)
    assert taken("a=b/3") == ("models:/a=b/3", None)


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_commands_about_a_models_alias_take_a_version_too(family, tmp_path, monkeypatch):
    mlflow.MlflowClient().set_registered_model_alias("merged", "candidate", "1")
    policy = tmp_path / "policy.yaml"
    policy.write_text("evidence: {min_images: 1}\n")
    monkeypatch.setenv("LOGNAME", "somebody else")
    for given in ("merged/1", "merged@candidate", "models:/merged/1", "models:/merged@candidate"):
        tried = run("promote", given, "--alias", "live", "--policy", policy, "--dry-run", "--json")
        assert json.loads(tried.stdout)["version"] == "1", tried.output
        approved = run("approve", given, "--json")
        assert json.loads(approved.stdout)["uri"] == "models:/merged/1", approved.output
    for given in ("merged@nobody", "models:/merged@nobody"):
        checked = run("recheck", given, "--tasks", family.tasks)
        assert checked.exit_code == 1
        assert "no version of 'merged' has the alias 'nobody'" in checked.stderr
    for given in WRONG:
        checked = run("recheck", given, "--tasks", family.tasks)
        assert checked.exit_code in (1, 2)
        assert "NAME@ALIAS" in checked.stderr


def test_functions_take_every_form(family):
    mlflow.MlflowClient().set_registered_model_alias("merged", "candidate", "1")
    short = [uris.short(uri) for uri in (family.base, *family.sources[:2])]
    for given in ("merged/1", "merged@candidate"):
        assert versions.resolve(given) == versions.resolve(f"models:/{given}")
        assert relatives.tree(given) == relatives.tree(family.merged)
        planned = changing.plan(given, add=[(uris.short(family.sources[2]), None)])
        assert planned.sources == family.sources
    again = flow.merge(
        flow.MergeRequest(
            base=short[0],
            sources=tuple(short[1:]),
            registered_model="merged",
            recipe=changing.plan("merged/1", remove=[]).recipe,
        )
    )
    assert (again.version.uri, again.reused) == (family.merged, True)
    mlflow.MlflowClient().delete_model_version("tiny-tints", "1")
    assert changing.plan("merged/1", remove=["tiny-tints/1"]).removed == (family.sources[1],)
    assert [entry.uri for entry in relatives.impact("tiny-tints/1")] == [
        family.merged,
        family.top,
    ]
    with pytest.raises(errors.RegistryError, match="names no version"):
        changing.plan("merged/1", remove=["tiny-tints"])


def test_a_folder_of_that_name_comes_before_a_version_where_both_go(zoo, tmp_path):
    loaded = [flavor.load_model(given).heads.keys() for given in ("tiny-tints/1", "tiny/1")]
    assert loaded[0] != loaded[1]
    folder = tmp_path / "tiny-tints" / "1"
    folder.mkdir(parents=True)
    mlflow.artifacts.download_artifacts("models:/tiny/1", dst_path=str(folder))
    assert flavor.load_model("tiny-tints/1").heads.keys() == loaded[1]
    assert flavor.load_model("models:/tiny-tints/1").heads.keys() == loaded[0]
