"""Sources whose tensors fit and whose configuration does not: refused, or measured by their own."""

import copy
import json

import pytest
import tiny
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors, flavor
from mlflow_breadcrumbs.evaluation import evaluating, scoring
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.models import architecture, tasks
from mlflow_breadcrumbs.pipeline import configurations
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.sources import importing

NEGATIVE = {"mean": [0.5, 0.5, 0.5], "std": [-0.05, -0.05, -0.05], "resize_mode": "squash"}


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def register(zoo, tmp_path, name, changes, preprocess=None, head=None):
    """A source for the task `colours` with another configuration; tensors of the same shapes."""
    content = copy.deepcopy(tiny.MODEL)
    for path, value in changes.items():
        *parts, last = path.split(".")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    if preprocess is not None:
        content = {"model_cfg": content, "preprocess_cfg": preprocess}
    state = load_file(zoo.folder / "colours.safetensors")
    save_file(
        {key: value * 1.01 if key == "visual.proj" else value for key, value in state.items()},
        tmp_path / f"{name}.safetensors",
    )
    return importing.import_checkpoint(
        str(tmp_path / f"{name}.safetensors"),
        architecture_name=tiny.config_file(tmp_path, content, f"{name}.json"),
        registered_model=name,
        task="colours",
        task_list=tasks.load_tasks(zoo.tasks),
        head=head or str(zoo.folder / "colours.head.safetensors"),
    ).uri


def of_itself(uri, zoo, split):
    """The accuracy of a version on `colours`, with its own preprocessing."""
    found = evaluating.evaluate_version(
        uri, zoo.tasks, only=["colours"], split=split, device="cpu", batch_size=64
    )
    return found.metrics()["accuracy/colours"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_cfg.head_width": 4}, "vision_cfg.head_width is 4 (the base's: 8)"),
        ({"quick_gelu": True}, "quick_gelu is True (the base's: False)"),
        ({"text_cfg.heads": 4}, "text_cfg.heads is 4 (the base's: 2)"),
        ({"vision_cfg.pool_type": "avg"}, "vision_cfg.pool_type is avg (the base's: tok)"),
    ],
)
def test_a_source_that_computes_otherwise_is_refused(zoo, tmp_path, changes, words):
    other = register(zoo, tmp_path, "other", changes)
    arguments = ["--base", zoo.base, "--source", other, "--source", zoo.sources[1]]
    refused = run("merge", *arguments, "--registered-model", "merged", "--tasks", zoo.tasks)
    assert refused.exit_code == 1
    said = f"Error: {other} does not compute as the base {zoo.base} does: "
    assert said + words in refused.output
    assert "Give the base that it was fine-tuned from" in refused.output
    with pytest.raises(errors.RegistryError):
        versions.resolve("models:/merged/1")

    compared = run("compare", *arguments)
    assert compared.exit_code == 0
    assert f"Merge refuses a source: {said.removeprefix('Error: ')}{words}" in compared.output


def test_what_no_feature_depends_on_may_differ(zoo, tmp_path):
    changes = {"vision_cfg.patch_dropout": 0.5, "quick_gelu": False, "vision_cfg.pool_type": "tok"}
    other = register(zoo, tmp_path, "other", changes)
    done = run("merge", "--base", zoo.base, "--source", other, "--registered-model", "merged")
    assert done.exit_code == 0, done.output
    assert "Note" not in done.output


def test_another_preprocessing_has_its_own_denominator_and_says_so(zoo, tmp_path):
    other = register(zoo, tmp_path, "negative", {}, NEGATIVE, head="probe")
    own = of_itself(other, zoo, "test")
    loaded = flavor.load_model(other)
    by_base = scoring.accuracy(
        loaded.model,
        loaded.heads["colours"],
        tasks.load_tasks(zoo.tasks)[0].images("test"),
        architecture.preprocess(flavor.load_model(zoo.base).config),
    )
    assert by_base.value < own  # else this test would show nothing

    arguments = ["--base", zoo.base, "--source", other, "--source", zoo.sources[1]]
    arguments += ["--tasks", zoo.tasks, "--registered-model", "merged", "--device", "cpu"]
    done = run("merge", *arguments)
    assert done.exit_code == 0, done.output
    assert (
        f"Note: {other} preprocesses images otherwise than the base {zoo.base}: mean is "
        "[0.5, 0.5, 0.5] (the base's: [0.48145466, 0.4578275, 0.40821073]); resize_mode is squash "
        "(the base's: shortest); std is [-0.05, -0.05, -0.05]" in done.output
    )
    assert "the denominator, is measured with its own preprocessing" in done.output
    made = json.loads(run("merge", *arguments, "--force", "--json").stdout)
    assert made["metrics"]["finetuned_accuracy/colours"] == own
    assert made["notes"][0].startswith(f"{other} preprocesses images otherwise")

    stated = contents.read_statement(versions.resolve("models:/merged/1"))[1]
    assert stated.sources[0].preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert stated.sources[1].preprocessing is None
    compared = run("compare", "--base", zoo.base, "--source", other, "--source", zoo.sources[1])
    assert f"- {other} preprocesses images otherwise" in compared.output


def test_a_study_takes_the_same_denominators(zoo, tmp_path, caplog):
    other = register(zoo, tmp_path, "negative", {}, NEGATIVE, head="probe")
    materials = workbench.Materials(zoo.base, (other, zoo.sources[1]), zoo.tasks, device="cpu")
    with workbench.opened(materials) as study:
        score = study.measure(workbench.recipe.MergeRecipe(density=1, alpha=0.5)).scores[0]
    assert score.finetuned.value == of_itself(other, zoo, "validation")
    assert "preprocesses images otherwise" in caplog.text


def test_models_of_other_flavors_are_held_against_their_own_configuration(tmp_path):
    def opened(name, **fields):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"hidden_act": "gelu", **fields}))
        resolved = versions.ResolvedVersion("", f"models:/{name}/1", name, "1", None, None, "", {})
        return versions.OpenedVersion(resolved, ("model.safetensors",), "transformers", folder, {})

    base = opened("base", num_attention_heads=2, text_config={"dtype": "float32"})
    same = opened("same", num_attention_heads=2, text_config={"dtype": "bfloat16"})
    other = opened("other", num_attention_heads=4, text_config={"dtype": "float32"})
    assert not configurations.check([base, same])[0].found
    with pytest.raises(errors.MergeError, match=r"num_attention_heads is 4 \(the base's: 2\)"):
        configurations.check([base, same, other])
    assert "register it again with the config.json of the base" in (
        configurations.compare([base, other])[0].refusal
    )
    for version, mode in ((base, "mean"), (same, "cls")):
        (version.folder / "modules.json").write_text("[]")
        (version.folder / "1_Pooling").mkdir()
        (version.folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(errors.MergeError, match=r"1_Pooling/config.json: pooling_mode is cls"):
        configurations.check([base, same])


def test_a_version_without_its_configuration_is_one_message(tmp_path):
    with pytest.raises(errors.ArchitectureError, match=r"open_clip_config.json' can't be read"):
        flavor.load_config(tmp_path)
    (tmp_path / architecture.CONFIG_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(
        errors.ArchitectureError, match=r"open_clip_config.json' is not text in UTF"
    ):
        flavor.load_config(tmp_path)
