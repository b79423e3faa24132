"""What rounding does to a source in fewer bits is measured from its dtypes, and said."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe


def noises(tmp_path, base, *sources):
    opened = []
    for number, state in enumerate((base, *sources)):
        save_file(state, tmp_path / f"{number}.safetensors")
        opened.append(checkpoints.Checkpoint.open(tmp_path / f"{number}.safetensors"))
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=len(sources))
    result = merging.merge(
        opened[0], opened[1:], settings, tmp_path / "out.safetensors", overwrite=True
    )
    return result.noises


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_expected_norm_is_the_one_that_rounding_makes(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(100, 1000, generator=generator), "b": torch.ones(10)}
    tuned = {"a": base["a"] + 1e-4 * torch.randn(100, 1000, generator=generator), "b": base["b"]}
    (noise,) = noises(tmp_path, base, {"a": tuned["a"].to(dtype), "b": tuned["b"]})
    made = float((tuned["a"].to(dtype).float() - tuned["a"]).norm())
    assert noise.expected == pytest.approx(made, rel=0.01)  # 100,000 errors: 0.3 % of luck
    assert noise.share == pytest.approx(
        made / float((tuned["a"].to(dtype) - base["a"]).norm()), rel=0.01
    )


def test_equal_or_wider_sources_have_none(tmp_path):
    base = {"a": torch.randn(8, 8).bfloat16()}
    wide = {"a": base["a"].float() + 0.01}
    same = {"a": base["a"] + 0.05}
    half = {"a": (base["a"] + 0.05).half()}
    assert noises(tmp_path, base, wide, same, half) == ()


def test_merge_files_warns_with_the_figure_and_what_to_do(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(512, 512, generator=generator)
    change = 1.1e-5 * torch.randn(512, 512, generator=generator)
    for name, tensor in {
        "base": base,
        "narrow": (base + change).bfloat16(),
        "full": base + 2 * change,
        "clear": (base + 300 * change).bfloat16(),
    }.items():
        save_file({"w": tensor}, tmp_path / f"{name}.safetensors")
    arguments = ["merge-files", "--base", str(tmp_path / "base.safetensors")]
    for name in ("narrow", "full", "clear"):
        arguments += ["--source", str(tmp_path / f"{name}.safetensors")]
    done = CliRunner().invoke(cli.main, [*arguments, "--output", str(tmp_path / "o.safetensors")])
    assert done.exit_code == 0, done.output
    (note,) = [line for line in done.output.splitlines() if line.startswith("Note")]
    assert note == (
        f"Note: {tmp_path / 'narrow.safetensors'} is stored in bfloat16, the base in float32: "
        "rounding alone makes a task vector of norm 0.017, 95% of the one found (0.0179), and "
        "masks keep rounding errors for changes. Give the source in float32, as it was before it "
        "was stored; where that is lost, a base rounded to bfloat16 too is better: what "
        "fine-tuning left alone cancels out."
    )


def test_a_rounded_base_finds_more_of_the_true_changes_where_that_is_recommended():
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(200_000, generator=generator)
    change = 1.1e-5 * torch.randn(200_000, generator=generator)
    stored = (base + change).bfloat16().float()

    def largest(vector):
        return set(vector.abs().topk(28_000).indices.tolist())

    truth = largest(change)
    as_it_is = len(truth & largest(stored - base)) / len(truth)
    rounded = len(truth & largest(stored - base.bfloat16().float())) / len(truth)
    assert as_it_is < 0.2  # 14 % is luck
    assert rounded > 1.5 * as_it_is
