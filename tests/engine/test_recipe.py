"""The recipe: ranges, presets, one canonical form."""

import dataclasses
import json
import math

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("breadcrumbs", (0.14, 0.01, 0.5, "tensor", "none", "sum")),
        ("breadcrumbs_signed", (0.14, 0.01, 0.5, "tensor", "mass", "sum")),
        ("task_arithmetic", (1.0, 0.0, 0.2, "tensor", "none", "sum")),
        ("ties", (0.2, 0.0, 0.67, "model", "mass", "mean")),
        ("weight_average", (1.0, 0.0, 0.25, "tensor", "none", "sum")),
        ("tsv_m", (1.0, 0.0, 1.0, "tensor", "none", "tsv")),
        ("iso_c", (1.0, 0.0, 1.5, "tensor", "none", "iso")),
        ("breadcrumbs_calibrated", (0.14, 0.01, 1.0, "tensor", "none", "sum")),
        ("actmat", (1.0, 0.0, 1.0, "tensor", "none", "covariance")),
        ("tact", (0.5, 0.0, 1.0, "tensor", "none", "covariance")),
        ("tsv_lines", (1.0, 0.0, 0.9, "tensor", "none", "tsv")),
        ("lora", (1.0, 0.0, 0.65, "tensor", "none", "iso_cts")),
        ("ace", (1.0, 0.0, 1.0, "tensor", "none", "ace")),
        ("iso_cts", (1.0, 0.0, 1.0, "tensor", "none", "iso_cts")),
    ],
)
def test_presets_are_the_specification_with_the_scales_of_the_study(method, expected):
    made = recipe.MergeRecipe.from_method(method, sources=4)
    assert (
        made.density,
        made.gamma,
        made.alpha,
        made.unit,
        made.consensus,
        made.combine,
    ) == expected
    assert (made.include, made.exclude, made.dtype, made.weights) == (("*",), (), "base", ())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"density": 0}, r"density is 0\.0; it must be in 0 < density ≤ 1"),
        ({"density": 1.5}, r"density is 1\.5"),
        ({"density": -0.1}, r"density is -0\.1"),
        ({"density": math.nan}, r"density is nan; it must be finite"),
        ({"density": "0.1"}, r"density is '0\.1'; it must be a number"),
        ({"density": True}, r"density is True; it must be a number"),
        ({"density": 0.5, "gamma": -0.1}, r"gamma is -0\.1; it must be in 0 ≤ gamma ≤ 1"),
        ({"density": 0.5, "gamma": math.inf}, r"gamma is inf; it must be finite"),
        ({"density": 0.5, "gamma": 0.6}, r"density 0\.5 \+ gamma 0\.6 is more than 1"),
        ({"density": 1, "gamma": 1e-9}, r"is more than 1"),
        ({"density": 0.5, "alpha": math.nan}, r"alpha is nan; it must be finite"),
        ({"density": 0.5, "alpha": 1e39}, r"alpha is 1e\+39; it must be finite in float32"),
        ({"density": 0.5, "weights": [1, math.inf]}, r"weight is inf; it must be finite"),
        ({"density": 0.5, "unit": "layer"}, r"unit is 'layer'; it must be one of tensor, row"),
        ({"density": 0.5, "consensus": "sign"}, r"consensus is 'sign'"),
        ({"density": 0.5, "combine": "max"}, r"combine is 'max'; it must be one of .*, tsv, iso"),
        ({"density": 0.5, "calibrate": "yes"}, r"calibrate is 'yes'; it must be one of none, svc"),
        (
            {"density": 0.5, "vectors": "sum"},
            r"vectors is 'sum'; it must be one of same, mean, whole",
        ),
        (
            {"density": 1, "combine": "tsv", "vectors": "same"},
            r"vectors is 'same' and combine is 'tsv', which is for matrices alone",
        ),
        ({"density": 1, "combine": "covariance", "ridge": -1}, r"ridge is -1\.0; it must be 0 or"),
        ({"density": 1, "combine": "covariance", "normalize": 1}, r"normalize is 1; it must be tr"),
        (
            {"density": 1, "ridge": 0.1},
            r"ridge is for combine covariance or ace, and combine is 's",
        ),
        ({"density": 1, "combine": "ace", "center": True}, r"center is for combine covariance, an"),
        ({"density": 1, "packed": "split"}, r"packed is 'split', which is for recipes that deco"),
        ({"density": 1, "packed": "yes"}, r"packed is 'yes'; it must be one of whole, split"),
        ({"density": 1, "depth": -0.1}, r"depth is -0\.1; it must be 0 or more"),
        ({"density": 0.5, "dtype": "int8"}, r"dtype is 'int8'; it must be one of base, float64"),
        ({"density": 0.5, "include": "visual.*"}, r"include is 'visual\.\*'; it must be a list"),
        ({"density": 0.5, "exclude": [""]}, r"exclude has the pattern ''"),
        ({"density": 0.5, "sparsity": 0.9}, r"a recipe has no field 'sparsity'; its fields are"),
        ({"gamma": 0.5}, r"a recipe needs density"),
    ],
)
def test_a_bad_field_is_named_with_value_and_range(fields, words):
    with pytest.raises(errors.RecipeError, match=words):
        recipe.MergeRecipe.from_dict(fields)


def test_the_edges_are_allowed():
    recipe.MergeRecipe(density=1.0, gamma=0.0)
    recipe.MergeRecipe(density=0.9, gamma=0.1)  # 0.9 + 0.1 is exactly 1 as written
    recipe.MergeRecipe(density=0.7, gamma=0.3)
    recipe.MergeRecipe(density=1e-9, alpha=0.0)
    recipe.MergeRecipe(density=0.1, alpha=1e9)
    recipe.MergeRecipe(density=0.1, alpha=-0.5)


def test_zero_is_a_value_and_none_is_unset():
    made = recipe.MergeRecipe.from_method("breadcrumbs", sources=2, gamma=0, alpha=None)
    assert made.gamma == 0
    assert made.alpha == 0.5


def test_canonical_json_and_digest_do_not_depend_on_how_numbers_were_written():
    one = recipe.MergeRecipe(density=1, alpha=-0.0, weights=(1,))
    two = recipe.MergeRecipe(density=1.0, alpha=0.0, weights=[1.0])
    assert one == two
    assert one.digest == two.digest
    assert json.loads(one.to_json()) == one.to_dict()
    assert one.to_json().startswith('{"alpha":0,"combine":"sum"')
    assert one.digest != dataclasses.replace(one, gamma=0.0, alpha=0.1).digest


def test_the_digest_of_a_recipe_never_changes():
    """Registered versions carry it: a change here would orphan them."""
    assert recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=0.3).to_json() == (
        '{"alpha":0.3,"combine":"sum","consensus":"none","density":0.14,"dtype":"base",'
        '"exclude":[],"gamma":0.01,"include":["*"],"unit":"tensor","weights":[]}'
    )


def test_a_recipe_file_takes_a_method_and_overrides(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("method: ties\ndensity: 0.3\n")
    made = recipe.make(sources=2, file=file, overrides={"alpha": 0.5, "gamma": None})
    assert (made.density, made.alpha, made.unit) == (0.3, 0.5, "model")
    file.write_text(made.to_json())
    assert recipe.make(sources=2, file=file) == made


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- density", "it must be a mapping"),
        ("{", "is not YAML"),
        ("density: 0.1\ngamma: 0\ndensity: 0.2\n", "line 3: density is given twice"),
        ("density: 0.1\nscale: 3", "a recipe has no field 'scale'"),
        ("method: magic", "method is 'magic'; it must be one of breadcrumbs"),
    ],
)
def test_a_bad_recipe_file_is_explained(tmp_path, content, words):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(errors.RecipeError, match=words):
        recipe.make(sources=2, file=file)


def test_a_missing_recipe_file_is_explained(tmp_path):
    with pytest.raises(errors.RecipeError, match=r"none\.yaml can't be read"):
        recipe.make(sources=2, file=tmp_path / "none.yaml")


def test_weights_must_be_one_per_source():
    made = recipe.MergeRecipe(density=0.1, weights=(1, 2))
    assert made.weight_of(2) == (1.0, 2.0)
    with pytest.raises(errors.RecipeError, match="the recipe has 2 weights for 3 sources"):
        made.weight_of(3)


def test_include_and_exclude_are_shell_patterns():
    made = recipe.MergeRecipe(density=0.1, include=("visual.*",), exclude=("*.bias",))
    assert made.merges("visual.proj")
    assert not made.merges("visual.ln.bias")
    assert not made.merges("text.proj")


def test_fields_that_go_without_saying_change_no_digest():
    plain = recipe.MergeRecipe(density=0.14, gamma=0.01, alpha=0.5)
    said = recipe.MergeRecipe(
        density=0.14, gamma=0.01, alpha=0.5, calibrate="none", vectors="same", ridge=0
    )
    assert said == plain
    assert said.digest == plain.digest
    assert set(plain.to_dict()) == {
        *("density", "gamma", "alpha", "weights", "unit", "consensus", "combine"),
        *("include", "exclude", "dtype"),
    }
    matrices = dataclasses.replace(plain, combine="tsv")
    assert matrices.averages_vectors
    assert not plain.averages_vectors
    assert dataclasses.replace(matrices, vectors="mean").digest == matrices.digest


@pytest.mark.parametrize(
    "fields",
    [
        {"calibrate": "svc"},
        {"calibrate": "svc", "vectors": "same"},
        {"vectors": "mean"},
        {"combine": "covariance", "ridge": 0.1, "normalize": True},
        {"own": ["classifier.*"]},
    ],
)
def test_fields_that_say_something_are_in_the_canonical_form(fields):
    made = recipe.MergeRecipe(density=0.14, **fields)
    assert {name: made.to_dict()[name] for name in fields} == fields
    assert recipe.MergeRecipe.from_dict(json.loads(made.to_json())) == made
    assert made.digest != recipe.MergeRecipe(density=0.14).digest


def test_only_matrices_are_decomposed_and_only_by_some_recipes():
    plain = recipe.MergeRecipe(density=0.1)
    assert plain.bit_exact
    assert not plain.decomposes((3, 4))
    for fields in ({"combine": "tsv"}, {"combine": "covariance"}, {"calibrate": "svc"}):
        made = dataclasses.replace(plain, **fields)
        assert not made.bit_exact
        assert made.decomposes((3, 4))
        assert not any(made.decomposes(shape) for shape in [(), (3,), (3, 4, 5), (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: [[]]\n", r"method is \[\[\]\]; it must be one of breadcrumbs"),
        ("method: ''\n", r"method is ''; it must be one of breadcrumbs"),
        ("method: 0\ndensity: 0.1\n", r"method is 0; it must be one of breadcrumbs"),
        ("sources: 3\nmethod: ties\n", r"a recipe has no field 'sources'; its fields are density"),
        ("1: 2\nmethod: ties\n", r"a recipe has no field 1; its fields are density"),
        ("? [a, b]\n: 1\n", r"is not YAML: while constructing a mapping"),
        ("density: 0.1\nweights: true\n", r"weights is True; it must be a list of numbers"),
        ("density: 0.1\nweights: '12'\n", r"weights is '12'; it must be a list of numbers"),
        (
            "- 2026-01-01: 1\n",
            r"holds \[\{datetime.date\(2026, 1, 1\): 1\}\]; it must be a mapping",
        ),
    ],
)
def test_fields_of_another_kind_in_a_file(tmp_path, text, words):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(errors.RecipeError, match=words):
        recipe.make(sources=2, file=tmp_path / "recipe.yaml")


def test_integers_of_any_size_are_refused():
    with pytest.raises(errors.RecipeError, match=r"alpha has 1329 bits; it must fit in float32"):
        recipe.MergeRecipe(density=1, alpha=10**400)
