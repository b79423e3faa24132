"""`tsv_m` and `iso_c` through the registry: lineage, audit, studies, commands."""

import dataclasses
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
import zoos
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import export, reproduce, verify
from mlflow_breadcrumbs.engine import recipe, tolerance
from mlflow_breadcrumbs.engine.backends import singular
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import blame, scaling, workbench
from mlflow_breadcrumbs.support import canonical

METHODS = ("tsv_m", "iso_c")
OFF = 1 + 2e-7
"""So that float32 shows the difference in so small a model."""


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def settings(method, **fields):
    return recipe.MergeRecipe.from_method(method, sources=3, **fields)


def merged(zoo, method, name="merged", **fields):
    request = flow.MergeRequest(
        zoo.base, zoo.sources, name, settings(method, **fields), device="cpu"
    )
    return flow.merge(request).version


def whole_decompositions(matrices, sources, how):
    """The same by other steps, as another library would take them, and a little off."""
    given = [matrix.double() for matrix in matrices]
    if how == "iso":
        total = sum(given[1:], start=given[0].clone())
        left, values, right = torch.linalg.svd(total.T, full_matrices=False)
        return (left * values.mean() @ right).T * OFF
    rank = max(1, min(given[0].shape) // sources)
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in given if matrix.any()]
    if not parts:
        return torch.zeros_like(given[0])
    sides = [
        torch.cat([part.U[:, :rank] for part in parts], 1),
        torch.cat([part.Vh[:rank].T for part in parts], 1),
    ]
    left, right = (
        found.U @ found.Vh
        for found in (torch.linalg.svd(side, full_matrices=False) for side in sides)
    )
    return left * torch.cat([part.S[:rank] for part in parts]) @ right.T * OFF


@pytest.mark.parametrize("method", METHODS)
def test_a_version_is_merged_verified_and_reproduced(zoo, method):
    version = merged(zoo, method)
    assert merged(zoo, method) == version  # found again
    assert verify.verify(version.uri).ok
    found = reproduce.reproduce(version.uri)
    assert found.identical
    assert found.reproduced
    stated = parsed(zoo, version.uri)
    assert stated.settings == settings(method)
    assert stated.tolerances == {"F32": 1e-6}
    written = stated.content["predicate"]["buildDefinition"]["internalParameters"]["tolerance"]
    assert "not bit-identical across devices" in written["reason"]


def parsed(zoo, uri):
    path = Path(versions.resolve(uri).location.removeprefix("file://"))
    return statement.parse((path / statement.FILE).read_bytes())


@pytest.mark.parametrize("method", METHODS)
def test_another_library_reproduces_it_within_the_tolerance(zoo, method, monkeypatch):
    version = merged(zoo, method)
    with monkeypatch.context() as patch:
        patch.setattr(singular, "combine", whole_decompositions)
        found = reproduce.reproduce(version.uri)
        assert not found.identical
        assert found.reproduced
        assert all(0 < entry.relative <= 1e-6 for entry in found.differences)
        done = run("reproduce", version.uri)
        assert done.exit_code == 0
        assert f"{version.uri}: reproduced within tolerance, " in done.output
        assert "(1e-06 is allowed)" in done.output
        assert version.weights_digest in done.output
        printed = json.loads(run("reproduce", version.uri, "--json").stdout)
        assert (printed["identical"], printed["reproduced"]) == (False, True)


def test_more_than_the_tolerance_is_not_reproduced(zoo, monkeypatch):
    version = merged(zoo, "tsv_m")
    original = singular.combine
    monkeypatch.setattr(singular, "combine", lambda *given: original(*given) * 1.001)
    found = reproduce.reproduce(version.uri)
    assert not found.reproduced
    done = run("reproduce", version.uri)
    assert done.exit_code == 3
    assert f"{version.uri}: NOT reproduced" in done.output
    assert "1e-06" in done.output


def test_weights_that_were_changed_are_not_reproduced_however_little(family):
    version = merged(family, "iso_c", "changed")
    path = family.file(version.uri)
    state = load_file(path)
    state["visual.proj"][0, 0] += 1e-6
    save_file(state, path)
    found = reproduce.reproduce(version.uri)
    assert all(entry.within for entry in found.differences)
    assert not found.reproduced
    assert not verify.verify(version.uri).ok


def test_a_statement_can_not_allow_much(zoo):
    version = merged(zoo, "tsv_m")
    content = json.loads(canonical.dumps(parsed(zoo, version.uri).content))
    stated = content["predicate"]["buildDefinition"]["internalParameters"]
    stated["tolerance"]["relativeNorm"]["F32"] = 0.5
    with pytest.raises(errors.StatementError, match=r"relativeNorm\.F32: 0\.5 is greater"):
        statement.validate(canonical.dumps(content))
    stated["tolerance"]["relativeNorm"]["F32"] = 1e-6
    plain = dataclasses.replace(settings("tsv_m"), combine="sum")
    stated |= {"recipe": plain.to_dict(), "recipeDigest": plain.digest}
    with pytest.raises(errors.StatementError, match="tolerance is given, but the recipe has"):
        statement.validate(canonical.dumps(content))


@pytest.mark.parametrize(("method", "paper"), [("tsv_m", "2412.00081"), ("iso_c", "2502.04959")])
def test_exports_say_the_method_and_the_tolerance(zoo, method, paper):
    version = merged(zoo, method)
    card = huggingface_hub.ModelCard(export.export(version.uri, "model-card"))
    assert f"https://arxiv.org/abs/{paper}" in card.text
    assert "not bit-identical across devices: merged again" in card.text
    assert "1e-06 (F32)" in card.text
    assert "compare within the tolerance" in card.text
    for form in ("cyclonedx", "openlineage", "prov"):
        assert "1e-6" in export.export(version.uri, form) or "0.000001" in export.export(
            version.uri, form
        )


def test_exports_of_other_versions_stay_as_they_were(family):
    text = export.export(family.merged, "model-card")
    assert "https://arxiv.org/abs/2312.06795" in text
    assert "compare every bit" in text
    assert "olerance" not in text
    assert "olerance" not in export.export(family.merged, "cyclonedx")


def test_blame_takes_a_repetition_within_the_tolerance(zoo, monkeypatch):
    version = merged(zoo, "tsv_m")
    few = {"device": "cpu", "images": 2, "finalists": 0}
    request = blame.BlameRequest(version.uri, "colours", zoo.tasks, **few)
    whole = blame.blame(request)
    with monkeypatch.context() as patch:
        patch.setattr(singular, "combine", whole_decompositions)
        assert blame.blame(request).merged == whole.merged
        original = whole_decompositions
        patch.setattr(singular, "combine", lambda *given: original(*given) * 1.01)
        with pytest.raises(errors.IntegrityError, match="by more than the tolerance of its"):
            blame.blame(request)


def test_a_study_gives_the_weights_of_a_merge(zoo):
    recipes = [
        settings("tsv_m"),
        settings("iso_c", alpha=0.5, weights=(1, 0.5, 2)),
        settings("tsv_m", density=0.3, gamma=0.05, unit="model"),
    ]
    materials = workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu", threads=2)
    with workbench.opened(materials) as bench:
        bench.prepare(recipes)
        found = [bench.merge(made).weights_digest for made in recipes]
        some = bench.merge(recipes[1], (0, 2)).weights_digest
        assert bench.merge(recipes[0]).weights_digest == found[0]
    for made, digest in zip(recipes, found, strict=True):
        request = flow.MergeRequest(zoo.base, zoo.sources, "m", made, device="cpu")
        assert flow.merge(request).version.weights_digest == digest
    two = dataclasses.replace(recipes[1], weights=(1, 2))
    request = flow.MergeRequest(zoo.base, (zoo.sources[0], zoo.sources[2]), "m", two, device="cpu")
    assert flow.merge(request).version.weights_digest == some


def test_another_alpha_decomposes_nothing_again(zoo, monkeypatch):
    materials = workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu")
    with workbench.opened(materials) as bench:
        first = bench.merge(settings("tsv_m", alpha=0.5)).weights_digest
        bench.merge(settings("iso_c"))
        with monkeypatch.context() as patch:
            patch.setattr(singular, "combine", None)
            assert bench.merge(settings("tsv_m", alpha=0.5)).weights_digest == first
            again = bench.merge(settings("tsv_m", alpha=2)).weights_digest
            with pytest.raises(TypeError):
                bench.merge(settings("tsv_m", weights=(1, 1, 2)))
            with pytest.raises(TypeError):
                bench.merge(settings("tsv_m"), (0, 1))
    with workbench.opened(materials) as bench:
        assert bench.merge(settings("tsv_m", alpha=2)).weights_digest == again
        monkeypatch.setattr(workbench, "KEPT_UPDATES", 0)
        bench.merge(settings("iso_c"))
        bench.merge(settings("iso_c"), (0, 1))
        monkeypatch.setattr(singular, "combine", None)
        with pytest.raises(TypeError):
            bench.merge(settings("tsv_m"))


def test_scaling_takes_them_as_methods(zoo):
    request = scaling.ScalingRequest(
        workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu"),
        methods=METHODS,
        alphas=(1.0,),
        images=2,
    )
    rows = {(row["method"], row["sources"]) for row in scaling.scaling(request).rows}
    assert rows == {(method, size) for method in METHODS for size in (2, 3)}


@pytest.mark.parametrize("method", METHODS)
def test_the_commands_take_them(zoo, tmp_path, method):
    sources = ["--base", zoo.base, "--sources", ",".join(zoo.sources)]
    done = run("merge", *sources, "--registered-model", "m", "--method", method, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recipe_digest"] == settings(method).digest
    assert run("compare", *sources, "--method", method).exit_code == 0
    files = [str(zoo.folder / f"{name}.safetensors") for name in ("base", *zoos.TASKS)]
    done = run(
        *("merge-files", "--base", files[0], "--method", method, "--density", "0.3", "--json"),
        *(part for file in files[1:] for part in ("--source", file)),
        *("--output", tmp_path / "out.safetensors"),
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["recipe"]["combine"] == method.split("_")[0]
    assert printed["tolerance"] == {"F32": tolerance.TOLERANCE}
