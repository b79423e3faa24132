"""Models with BatchNorm in the main flow: what is kept is said, what isn't finite is refused."""

import json

import mlflow
import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import reproduce
from mlflow_breadcrumbs.evaluation import trial
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import importing

RESNET = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def resnets(store, light, tmp_path):
    """A base and two sources that were trained in train mode: URIs, and the base's tensors."""
    config = tiny.config(tmp_path, RESNET)
    states, uris = [], []
    for number, name in enumerate(("base", "one", "two")):
        model = tiny.model(config)
        if number:
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(number))
            for _ in range(number):  # other statistics, other counters
                model.encode_image(pixels).square().mean().backward()
                optimizer.step()
        states.append({key: tensor.clone() for key, tensor in model.state_dict().items()})
        save_file(states[-1], tmp_path / f"{name}.safetensors")
        uris.append(
            importing.import_checkpoint(
                str(tmp_path / f"{name}.safetensors"),
                architecture_name=tiny.config_file(tmp_path, RESNET),
                registered_model=name,
            ).uri
        )
    return uris, states[0]


def test_statistics_stay_the_bases_and_this_is_said_and_recorded(resnets):
    (base, one, two), state = resnets
    arguments = ["--base", base, "--source", one, "--source", two]
    done = run("merge", *arguments, "--registered-model", "merged", "--method", "task_arithmetic")
    assert done.exit_code == 0, done.output
    said = (
        "he running statistics and counters of normalization layers are the base's: "
        "visual.bn1.num_batches_tracked, visual.bn1.running_mean, visual.bn1.running_var, "
    )
    assert f"Note: t{said}" in done.output
    resolved = versions.resolve("models:/merged/1")
    with versions.workspace() as folder:
        merged = load_file(versions.open_version(resolved, folder).weights)
    names = [name for name in state if "running_" in name or "num_batches" in name]
    assert all(torch.equal(merged[name], state[name]) for name in names)
    stated = contents.read_statement(resolved)[1]
    assert stated.running == tuple(sorted(names))
    assert reproduce.reproduce(resolved.uri).identical

    compared = run("compare", *arguments, "--method", "task_arithmetic")
    assert compared.exit_code == 0, compared.output
    assert f"- T{said}" in compared.output


def test_a_result_that_is_not_finite_is_refused(resnets):
    (base, one, two), _ = resnets
    arguments = ["merge", "--base", base, "--source", one, "--source", two]
    arguments += ["--registered-model", "merged", "--include", "*", "--include", "*.running_var"]
    refused = run(*arguments, "--method", "task_arithmetic", "--alpha", "20")
    assert refused.exit_code == 1
    assert (
        "Error: the merged model is refused, and nothing was registered. The weights give features "
        "that are not finite numbers for 4 of 4 images (made-up ones)" in refused.output
    )
    assert mlflow.MlflowClient().search_registered_models("name = 'merged'") == []


def test_a_model_that_is_not_finite_is_not_measured(store, light, tmp_path):
    config = tiny.config(tmp_path, RESNET)
    state = tiny.model(config).state_dict()
    state["visual.bn1.running_var"] -= 5
    save_file(state, tmp_path / "nan.safetensors")
    uri = importing.import_checkpoint(
        str(tmp_path / "nan.safetensors"),
        architecture_name=tiny.config_file(tmp_path, RESNET),
        registered_model="nan",
        task="colours",
    ).uri
    save_file({"weight": torch.eye(3, 12)}, tmp_path / "head.safetensors")
    tasks = tiny.task_file(tmp_path)
    headed = run(
        *("import", tmp_path / "nan.safetensors", "--architecture", tmp_path / "tiny.json"),
        *("--registered-model", "nan", "--tasks", tasks, "--task", "colours"),
        *("--head", tmp_path / "head.safetensors", "--json"),
    )
    assert headed.exit_code == 0, headed.output
    refused = run("evaluate", json.loads(headed.stdout)["uri"], "--tasks", tasks)
    assert refused.exit_code == 1
    assert (
        "Error: The weights give features that are not finite numbers for 6 of 6 images "
        "(colours/test" in refused.output
    )
    assert uri == "models:/nan/1"


@pytest.mark.parametrize("content", [tiny.MODEL, tiny.IMAGE_ONLY, RESNET])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sound_models_of_all_kinds_pass(tmp_path, content, dtype):
    config = tiny.config(tmp_path, content)
    state = tiny.model(config).state_dict()
    save_file(
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()},
        tmp_path / "m.safetensors",
    )
    before = torch.get_rng_state()
    trial.check(config, tmp_path / "m.safetensors", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_model_are_one_message(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"doesn't fit its open_clip_config.json"):
        trial.check(tiny.config(tmp_path), tmp_path / "m.safetensors", "cpu")
