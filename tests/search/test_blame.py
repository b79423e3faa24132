"""Who is to blame: a zoo with one source that was damaged on purpose, in one block."""

import json

import mlflow
import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.search import blame
from mlflow_breadcrumbs.sources import importing

DAMAGED = "visual.transformer.resblocks.0"
NAMES = ("left", "right", "broken")


def put_source(folder, state, number, name, config_file, task_file):
    """A source a small step from the base; the broken one has one block full of noise."""
    generator = torch.Generator().manual_seed(number)
    tuned = {
        key: tensor + 0.001 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in state.items()
    }
    if name == "broken":
        for key in tuned:
            if key.startswith(DAMAGED):
                tuned[key] = torch.randn(tuned[key].shape, generator=generator) * 3
    save_file(tuned, folder / f"{name}.safetensors")
    return importing.import_checkpoint(
        str(folder / f"{name}.safetensors"),
        architecture_name=config_file,
        registered_model=name,
        task=name,
        task_list=tasks.load_tasks(task_file),
        head="probe" if name != "broken" else str(folder / "right.head.safetensors"),
    )


@pytest.fixture
def damaged(store, tmp_path):
    """A merged version of three sources, one of them broken, and its task file."""
    config_file, config = tiny.config_file(tmp_path), tiny.config(tmp_path)
    images = tiny.image_tree(tmp_path / "images", 40)
    task_file = tmp_path / "tasks.yaml"
    task_file.write_text(
        "tasks:\n"
        + "".join(
            f"  - name: {name}\n    classes: [red, green, blue]\n    images: {{folder: {images}}}\n"
            for name in NAMES
        )
    )
    state = {name: tensor.contiguous() for name, tensor in tiny.model(config).state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    head = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    save_file({"weight": head}, tmp_path / "right.head.safetensors")
    importing.import_checkpoint(
        str(tmp_path / "base.safetensors"), architecture_name=config_file, registered_model="base"
    )
    uris = [
        put_source(tmp_path, state, number, name, config_file, str(task_file)).uri
        for number, name in enumerate(NAMES)
    ]
    merged = flow.merge(
        flow.MergeRequest(
            base="models:/base/1",
            sources=tuple(uris),
            registered_model="merged",
            recipe=recipe.MergeRecipe(1.0, 0.0, 1.0),
            max_norm_ratio=None,
            device="cpu",
        )
    )
    return merged.version, str(task_file)


def test_the_damaged_source_and_its_block_are_found(damaged):
    version, task_file = damaged
    found = blame.blame(blame.BlameRequest(version.uri, "left", task_file, images=10, device="cpu"))
    assert found.merged.value < found.source.value
    sources = [suspect for suspect in found.suspects if suspect.kind == "source"]
    assert sources[0].name == "models:/broken/1"
    assert sources[0].clear
    assert sources[0].accuracy == found.source.value
    layers = [suspect for suspect in found.suspects if suspect.kind == "layers"]
    assert layers[0].name == DAMAGED
    assert layers[0].clear
    assert "Without models:/broken/1 it is" in found.sentence
    assert f"With the base's weights in {DAMAGED} it is" in found.sentence

    client = mlflow.MlflowClient()
    assert found.run_id == version.run_id
    paths = {artifact.path for artifact in client.list_artifacts(found.run_id, "blame")}
    assert paths == {"blame/left.csv", "blame/left.json", "blame/left.png"}
    stored = mlflow.artifacts.load_dict(f"runs:/{found.run_id}/blame/left.json")
    assert stored == found.to_dict()


def test_a_few_images_first_and_all_for_the_finalists(damaged):
    version, task_file = damaged
    request = blame.BlameRequest(
        version.uri, "left", task_file, images=6, finalists=1, device="cpu"
    )
    found = blame.blame(request)
    for kind in ("source", "layers"):
        own = [suspect for suspect in found.suspects if suspect.kind == kind]
        assert [suspect.total for suspect in own] == [found.merged.total] + [6] * (len(own) - 1)
        assert own[0].merged.correct == found.merged.correct


def test_where_nothing_is_wrong_nobody_is_blamed(zoo):
    merged = flow.merge(
        flow.MergeRequest(
            zoo.base, zoo.sources, "merged", recipe.MergeRecipe(0.1, 0.0, 0.001), device="cpu"
        )
    )
    found = blame.blame(blame.BlameRequest(merged.version.uri, "tints", zoo.tasks, device="cpu"))
    assert not any(suspect.clear for suspect in found.suspects)
    assert "No single source is to blame" in found.sentence
    assert "No single layer group is to blame" in found.sentence


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command(zoo):
    merged = flow.merge(
        flow.MergeRequest(
            zoo.base, zoo.sources, "merged", recipe.MergeRecipe(0.5, 0.0, 1.0), device="cpu"
        )
    )
    arguments = ["blame", merged.version.uri, "--task", "hues", "--tasks", zoo.tasks]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "hues: 0." in done.output
    assert f"run {merged.version.run_id}: blame/hues.png" in done.output
    made = json.loads(invoke(*arguments, "--json").stdout)
    assert made["own_source"] == zoo.sources[2]
    assert {row["left_out"] for row in made["suspects"]} >= set(zoo.sources)

    unknown = invoke("blame", merged.version.uri, "--task", "cars", "--tasks", zoo.tasks)
    assert unknown.exit_code == 1
    assert "has no task 'cars'; it has colours,tints,hues" in unknown.stderr.replace(", ", ",")


def test_a_version_that_is_no_merge_is_refused(zoo):
    with pytest.raises(errors.RegistryError, match=r"has no lineage\.json at .*; only a version"):
        blame.blame(blame.BlameRequest(zoo.sources[0], "colours", zoo.tasks, device="cpu"))
