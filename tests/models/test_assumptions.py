"""What is taken for an architecture's bare name is said, and which weights were made otherwise."""

import pytest
import tiny
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.models import architecture, assumptions


def test_activation_preprocessing_and_the_weights_that_differ():
    said = assumptions.of("ViT-B-32")
    assert said.startswith(
        "ViT-B-32 was taken by its bare name: activation GELU, preprocessing size 224, mode RGB, "
        "mean [0.481, 0.458, 0.408], std [0.269, 0.261, 0.276], interpolation bicubic, "
        "resize_mode shortest, fill_color 0. These weights of it were trained otherwise: openai, "
    )
    assert "metaclip_fullcc (QuickGELU). If the checkpoint comes from one of them" in said
    assert said.endswith("or with `--architecture ViT-B-32-quickgelu` where it is only QuickGELU.")
    siglip = assumptions.of("ViT-B-16-SigLIP")
    assert "webli (mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], resize_mode squash)" in siglip


def test_nothing_is_open_where_no_weights_differ(tmp_path):
    assert "trained otherwise" not in assumptions.of("ViT-B-32-quickgelu")
    assert assumptions.of(tiny.config_file(tmp_path)) is None
    with pytest.raises(errors.ArchitectureError, match="Unknown architecture 'ViT-B-33'"):
        assumptions.of("ViT-B-33")


def test_the_command_says_it_beside_its_result(store, tmp_path, light):
    config = architecture.load_config("ViT-S-32")
    save_file(architecture.build(config).state_dict(), tmp_path / "small.safetensors")
    arguments = ["import", "small.safetensors", "--registered-model", "small", "--json"]
    done = CliRunner().invoke(cli.main, [*arguments, "--architecture", "ViT-S-32"])
    assert done.exit_code == 0, done.output
    assert "Note: ViT-S-32 was taken by its bare name: activation GELU" in done.stderr
    assert done.stdout.startswith("{")
