"""What a draft leaves open is found from the weights, and said."""

import pytest
import torch
import zoos
from safetensors.torch import load_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import drafts, files, recipe, settling
from mlflow_breadcrumbs.engine.backends import choosing


def states(rank=None, sources=4, factors=()):
    """A base of two blocks, and sources whose changes have a rank, or the full one."""
    generator = torch.Generator().manual_seed(0)

    def matrix(width):
        if rank is None:
            return torch.randn(60, width, generator=generator)
        left = torch.randn(60, rank, generator=generator)
        return left @ torch.randn(rank, width, generator=generator)

    shapes = {"blocks.0.weight": 60, "blocks.1.weight": 80}
    base = {name: torch.randn(60, width, generator=generator) for name, width in shapes.items()}
    base["norm.bias"] = torch.randn(60, generator=generator)
    found = [base]
    for number in range(sources):
        factor = (factors or (1,) * sources)[number] * 0.01
        tuned = {name: base[name] + factor * matrix(width) for name, width in shapes.items()}
        tuned["norm.bias"] = base["norm.bias"] + factor * torch.randn(60, generator=generator)
        found.append(tuned)
    return found


def settled(all_states, folder, **given):
    base, *sources = zoos.opened(all_states, folder)
    draft = drafts.draft(sources=len(sources), **given)
    labels = [f"source {number}" for number in range(len(sources))]
    return settling.settle(base, sources, draft, labels=labels, backend=choosing.choose())


def test_nothing_open_is_nothing_to_find(tmp_path):
    assert settled(states(), tmp_path, method="ties") is None


def test_changes_of_full_rank_and_like_length(tmp_path):
    found = settled(states(), tmp_path, method="auto")
    assert found.recipe == recipe.MergeRecipe.from_method(settling.rule(1.0, 4)[0], sources=4)
    assert found.opened == ("method",)
    assert "not of low rank" in found.why
    assert "of like length" in found.why
    assert found.measured["rank"] > 0.5
    assert len(found.measured["lengths"]) == 4


def test_changes_of_low_rank(tmp_path):
    found = settled(states(rank=2), tmp_path, method="auto")
    assert found.recipe == recipe.MergeRecipe.from_method("lora", sources=4)
    assert "the changes are of low rank (3% of the full one)" in found.why


@pytest.mark.parametrize("rank", [2, None])
def test_one_source_is_what_it_is(tmp_path, rank):
    found = settled(states(rank=rank, sources=1), tmp_path, method="auto")
    assert found.recipe == recipe.MergeRecipe(density=1)
    assert "there is one source" in found.why


def test_a_long_source_is_shortened(tmp_path):
    """To the median where that is asked for, half the way by the automatic method."""
    found = settled(states(factors=(1, 1, 10, 1)), tmp_path, method="auto")
    assert found.recipe.weights == pytest.approx((1, 1, 0.1**0.5, 1), rel=0.05)
    said = "shortened half the way to the median length of the changes: source 2 (10"
    assert said in found.why
    own = settled(
        states(factors=(1, 1, 10, 1)), tmp_path, method="ties", overrides={"balance": True}
    )
    assert own.recipe.weights == pytest.approx((1, 1, 0.1, 1), rel=0.05)
    assert "shortened to the median length" in own.why
    assert own.recipe.unit == "model"
    assert own.opened == ("balance",)


def test_weights_that_were_given_are_shortened_by_what_they_make_of_the_lengths(tmp_path):
    given = {"weights": [1, 1, 0.1, 1]}
    found = settled(states(factors=(1, 1, 10, 1)), tmp_path, method="auto", overrides=given)
    assert found.recipe.weights == (1, 1, 0.1, 1)


@pytest.mark.parametrize("method", ["task_arithmetic", "breadcrumbs", "ties"])
def test_alpha_makes_what_is_added_twice_as_long_as_the_mean(tmp_path, method):
    all_states = states()
    found = settled(all_states, tmp_path, method=method, overrides={"alpha": "auto"})
    base, *sources = all_states
    first, *others = sorted(tmp_path.glob("*.safetensors"))
    result = files.merge_files(first, others, found.recipe, tmp_path / "out.safetensors")
    merged = load_file(result.output)
    added = sum((merged[name] - base[name]).double().square().sum() for name in base) ** 0.5
    mean = (
        sum(
            (sum(s[name].double() - base[name].double() for s in sources) / 4).square().sum()
            for name in base
        )
        ** 0.5
    )
    assert float(added / mean) == pytest.approx(2, rel=0.06)  # alpha has two digits
    assert f"alpha {found.recipe.alpha:g}" in found.why


def test_sources_that_are_the_base_settle_too(tmp_path):
    base = states()[0]
    found = settled([base, base, base], tmp_path, method="auto")
    assert found.recipe.weights == ()
    flat = settled([base, base, base], tmp_path, method="ties", overrides={"alpha": "auto"})
    assert flat.recipe.alpha == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"method": "auto", "overrides": {"alpha": 0.3, "unit": "row"}},
            "--method auto chooses alpha, unit itself; leave that out, or name a method",
        ),
        (
            {"method": "auto", "overrides": {"balance": True}},
            "--method auto chooses balance itself",
        ),
        ({"method": "best"}, "method is 'best'; it must be one of breadcrumbs"),
        ({"overrides": {"alpha": "full"}}, "alpha is 'full'; it must be a number"),
    ],
)
def test_what_does_not_go_together_is_said(given, words):
    with pytest.raises(errors.RecipeError, match=words):
        drafts.draft(sources=2, **given)


def test_alpha_of_recipes_that_decompose_is_not_found(tmp_path):
    with pytest.raises(errors.RecipeError, match="alpha is 'auto' and combine is 'tsv'"):
        settled(states(), tmp_path, method="tsv_m", overrides={"alpha": "auto"})


def test_a_recipe_file_may_leave_things_open(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("method: ties\nalpha: auto\nbalance: true\n")
    found = drafts.draft(sources=2, file=file)
    assert found.open == {"alpha", "balance"}
    assert found.recipe.consensus == "mass"
    file.write_text("method: auto\n")
    assert drafts.draft(sources=2, file=file).open == {"method"}
    with pytest.raises(errors.RecipeError, match="method is 'auto'; it must be one of"):
        recipe.make(sources=2, file=file)


def test_a_field_that_says_how_to_merge_is_no_automatic_merge():
    """A pipeline that gives fields of the paper's method gets that method, whatever the default."""
    for fields in ({"alpha": 0.3}, {"density": 0.2}, {"consensus": "mass"}, {"balance": True}):
        found = drafts.draft(sources=2, overrides=fields, default="auto")
        assert "method" not in found.open
    found = drafts.draft(sources=2, overrides={"dtype": "float16"}, default="auto")
    assert found.open == {"method"}
    assert found.recipe.dtype == "float16"
    assert drafts.draft(sources=2, default="breadcrumbs").recipe == recipe.make(sources=2)
