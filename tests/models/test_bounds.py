"""Configurations that ask for absurd models are refused before any memory is taken."""

import copy
import json
import os

import open_clip
import pytest
import tiny
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli, errors, flavor
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.models import architecture, bounds, task_heads


def changed(**fields):
    content = copy.deepcopy(tiny.MODEL)
    for name, value in fields.items():
        part, _, last = name.rpartition("__")
        (content[part] if part else content)[last] = value
    return content


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "RN50", "coca_ViT-B-32", "convnext_tiny", "ViT-S-16-alt"]
)
def test_the_least_size_is_no_more_than_the_size(name):
    if name not in open_clip.list_models():
        pytest.skip("another open_clip")
    model = architecture.outline(architecture.load_config(name))
    size = sum(tensor.numel() for tensor in model.state_dict().values())
    assert bounds.at_least(open_clip.get_model_config(name)) <= size


LARGE = {"vision_cfg__layers": 256, "vision_cfg__width": 16_384}


def test_import_holds_the_size_against_the_checkpoint(store, tmp_path):
    save_file(tiny.model(tiny.config(tmp_path)).state_dict(), tmp_path / "tiny.safetensors")
    path = tiny.config_file(tmp_path, changed(**LARGE), "large.json")
    arguments = ["import", str(tmp_path / "tiny.safetensors"), "--architecture", path]
    done = CliRunner().invoke(cli.main, [*arguments, "--registered-model", "large"])
    assert done.exit_code == 1
    assert "asks for a model of at least 824,63" in done.output
    assert "They don't belong together" in done.output


def version(family, uri):
    return family.file(uri).parent


def test_a_version_whose_configuration_grew_is_refused(family):
    folder = version(family, family.sources[0])
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"layers": 256, "width": 16_384}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    for arguments in (
        ["evaluate", family.sources[0], "--tasks", family.tasks],
        ["merge", "--base", family.base, "--source", family.sources[0], "--registered-model", "x"],
        ["merge", "--base", family.sources[0], "--source", family.sources[1],
         "--registered-model", "x"],
    ):  # fmt: skip
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == 1
        assert "asks for a model of at least 824,63" in done.output, done.output


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "vit_giant_patch14_224", "image_size": 224},
        {"attentional_pool": True, "attn_pooler_queries": 8_000, "width": 4_096, "head_width": 64},
        {"pos_embed_type": "sin_cos_2d", "image_size": 2_048, "patch_size": 1},
    ],
)
def test_parts_that_no_formula_counts_are_counted_before_they_are_made(family, vision):
    folder = version(family, family.sources[0])
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= vision
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(errors.ArchitectureError, match="asks for a model of at least"):
        flavor.load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("open_clip_config.json", "open_clip_config.json' can't be read: it is a pipe, not a file"),
        ("MLmodel", "the MLmodel file of models:/tiny-colours/1"),
        ("tasks/colours.json", "colours.json' can't be read: it is a pipe, not a file"),
        ("tasks/colours.safetensors", "colours.safetensors' is not a file"),
        ("open_clip_model.safetensors", "is not a file; name a .safetensors file"),
    ],
)
def test_a_pipe_in_a_version(family, file, words):
    path = version(family, family.sources[0]) / file
    path.unlink()
    os.mkfifo(path)
    done = CliRunner().invoke(cli.main, ["evaluate", family.sources[0], "--tasks", family.tasks])
    assert done.exit_code == 1
    assert words in done.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 9_000, "is refused: it is nested deeper than 64 levels"),
        (
            '{"embed_dim": 12, "vision_cfg": {"layers": 1' + "0" * 4_999 + "}}",
            "is beyond ±90071992",
        ),
        (r'{"embed_dim": 12, "vision_cfg": {"a": "\ud800"}}', "is no Unicode text"),
        ('{"embed_dim": 12, "embed_dim": 13}', "the key 'embed_dim' is given twice"),
    ],
)
def test_hostile_configurations(tmp_path, content, words):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(errors.ArchitectureError) as caught:
        architecture.load_config(str(tmp_path / "x.json"))
    assert words in str(caught.value)


HEAD = {"task": "colours", "kind": "probe", "classes": ["red"], "templates": []}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 9_000, "is refused: it is nested deeper than 64 levels"),
        (json.dumps(HEAD | {"task": "../colours"}), "its 'task' must be 'colours', as the file"),
        (json.dumps(HEAD | {"task": 7}), "its 'task' must be 'colours', as the file"),
        (json.dumps(HEAD | {"classes": "red"}), "'classes' must be texts"),
        (json.dumps(HEAD | {"classes": [1]}), "'classes' must be texts"),
        (json.dumps(HEAD | {"kind": ["a"]}), "'kind' must be one of zero-shot, probe, file"),
        (json.dumps(HEAD).replace("red", r"\ud800"), "is no Unicode text"),
        ("[]", "is not a JSON object"),
    ],
)
def test_hostile_heads(tmp_path, content, words):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.json").write_text(content)
    with pytest.raises(errors.TaskError) as caught:
        task_heads.read(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "lineage.json is refused: it is nested deeper than 64 levels"),
        (b'{"a": 9007199254740993}', "lineage.json is refused: the integer 9007199254740993"),
        (rb'{"a": "\ud800"}', "is no Unicode text"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b'{"a": 1, "a": 1}', "the key 'a' is given twice"),
        (b"\xff", "lineage.json is not text in UTF-8"),
    ],
)
def test_hostile_lineage(content, words):
    with pytest.raises(errors.StatementError) as caught:
        statement.parse(content)
    assert words in str(caught.value)


def test_a_version_whose_mlmodel_multiplies_is_refused_before_mlflow_reads_it(family):
    folder = version(family, family.sources[0])
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (folder / "MLmodel").write_text((folder / "MLmodel").read_text() + text)
    words = "its aliases stand for more than 50,000 values"
    with pytest.raises(errors.RegistryError, match=words):
        flavor.load_model(str(folder))
    done = CliRunner().invoke(cli.main, ["evaluate", family.sources[0], "--tasks", family.tasks])
    assert done.exit_code == 1
    assert words in done.output
    assert "Restore it, or register the model again" in done.output
