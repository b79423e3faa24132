"""A merge done again from its lineage: the same bits, or which tensors differ."""

import json

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import reproduce
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.registry import versions


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_same_bits_come_out_again(family, backend):
    before = mlflow.MlflowClient().search_model_versions()
    for uri in (family.merged, family.top):
        found = reproduce.reproduce(uri, backend=choosing.choose(name=backend))
        assert found.identical
        assert found.differences == ()
        assert found.reproduced_digest == versions.resolve(uri).recorded_digest
    assert len(mlflow.MlflowClient().search_model_versions()) == len(before)


def test_tensors_that_differ_are_named_with_how_much(family):
    path = family.file(family.merged)
    state = load_file(path)
    state["visual.proj"][0, 0] += 0.5
    state["logit_scale"] = state["logit_scale"].half()
    save_file(state, path)
    found = reproduce.reproduce(family.merged)
    assert not found.identical
    assert found.recorded_digest == found.reproduced_digest != found.registered_digest
    by_name = {entry.tensor: entry for entry in found.differences}
    assert set(by_name) == {"visual.proj", "logit_scale"}
    projection = by_name["visual.proj"]
    assert (projection.elements, projection.total) == (1, state["visual.proj"].numel())
    assert projection.max_abs == pytest.approx(0.5, rel=1e-6)
    state["visual.proj"][0, 0] -= 0.5
    norm = np.linalg.norm(state["visual.proj"].numpy())
    assert projection.relative == pytest.approx(0.5 / norm, rel=1e-5)

    result = run("reproduce", family.merged)
    assert result.exit_code == 3
    assert "visual.proj" in result.output
    assert "models:/merged/1: NOT reproduced" in result.output
    result = run("reproduce", family.merged, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["identical"] is False


def test_missing_and_reshaped_tensors_are_named(family):
    path = family.file(family.merged)
    state = load_file(path)
    del state["logit_scale"]
    state["visual.proj"] = state["visual.proj"][:1].contiguous()
    save_file(state, path)
    found = reproduce.reproduce(family.merged)
    assert [entry.tensor for entry in found.differences] == ["logit_scale", "visual.proj"]
    assert all(entry.max_abs is None for entry in found.differences)
    path.write_bytes(b"")
    found = reproduce.reproduce(family.merged)
    assert (found.identical, found.registered_digest) == (False, None)


def test_a_deleted_source_is_taken_from_its_logged_model(family):
    client = mlflow.MlflowClient()
    model = versions.resolve(family.sources[0]).model_id
    client.delete_model_version("tiny-colours", "1")
    assert reproduce.reproduce(family.merged).identical
    client.delete_logged_model(model)
    words = "the source models:/tiny-colours/1 is gone, so the merge can't be done again: cannot"
    with pytest.raises(errors.RegistryError, match=words):
        reproduce.reproduce(family.merged)


def test_changed_inputs_are_errors(family):
    path = family.file(family.sources[1])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    words = r"the weights of models:/tiny-tints/1 have the digest .* was expected"
    with pytest.raises(errors.IntegrityError, match=words):
        reproduce.reproduce(family.merged)
    path.unlink()
    with pytest.raises(errors.RegistryError, match=r"models:/tiny-tints/1 .* no safetensors"):
        reproduce.reproduce(family.merged)


def test_a_changed_lineage_and_none_are_errors(family):
    path = family.file(family.merged, "lineage.json")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(errors.IntegrityError, match=r"the lineage.json of .* was changed after"):
        reproduce.reproduce(family.merged)
    client = mlflow.MlflowClient()
    client.delete_model_version_tag("merged", "1", "breadcrumbs.lineage_digest")
    with pytest.raises(errors.StatementError, match="the bytes are not the canonical JSON"):
        reproduce.reproduce(family.merged)
    with pytest.raises(errors.RegistryError, match=r"models:/tiny/1 has no lineage.json at"):
        reproduce.reproduce(family.base)


def test_the_command(family):
    result = run("reproduce", family.top, "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "models:/top/1: bit-identical, " in result.output
    assert run("reproduce", family.base).exit_code == 1
