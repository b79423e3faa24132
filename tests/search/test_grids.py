"""Grids and draws: what the texts mean, and what is no recipe is named before anything runs."""

import random

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.search import grids


def make(point):
    fields = dict(point)
    return recipe.make(sources=2, method=fields.pop("method", None), overrides=fields)


@pytest.mark.parametrize(
    ("field", "value", "values"),
    [
        ("density", "0.1,0.14,0.2", (0.1, 0.14, 0.2)),
        ("alpha", "0.3:1.5:0.3", (0.3, 0.6, 0.9, 1.2, 1.5)),
        ("alpha", "0.1:0.35:0.1", (0.1, 0.2, 0.3)),
        ("alpha", "-1, 0:0.2:0.1, 0.1", (-1.0, 0.0, 0.1, 0.2)),
        ("gamma", 0.01, (0.01,)),
        ("gamma", [0, 0.01], (0, 0.01)),
        ("density", "0.05..0.3", grids.Range(0.05, 0.3)),
        ("consensus", "none,mass", ("none", "mass")),
        ("method", "ties", ("ties",)),
        ("weights", [[1, 0.5], [0.5, 1]], ((1, 0.5), (0.5, 1))),
        ("exclude", ["*.bias"], (("*.bias",),)),
    ],
)
def test_values_are_read_as_written(field, value, values):
    assert grids.parse(field, value) == values


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("colour", "red", "a grid has no field 'colour'; its fields are density, gamma"),
        ("density", "a,b", "density has 'a', which is no number"),
        ("density", "1/3", "density has '1/3', which is no number"),
        ("density", "nan", "density has 'nan', which is no number"),
        ("alpha", "1e999..2", r"alpha has '1e999'; it must be finite in float32"),
        ("alpha", "1e999999999", r"alpha has '1e999999999', which is no number"),
        ("alpha", "1:1e-999999999:1", r"alpha has '1e-999999999', which is no number"),
        ("alpha", "9" * 5000, "9" * 60 + "…', which is no number"),
        ("alpha", "0.1:0.5", "write START:STOP:STEP, as 0.3:1.5:0.3"),
        ("alpha", "0.1:0.5:0", "the step must be above 0"),
        ("alpha", "0.5:0.1:0.1", "the stop not below the start"),
        ("alpha", "0:1:0.000001", "1000001 values; give a larger step"),
        ("alpha", "1..0.5", "the first number must be smaller"),
        ("alpha", [], "alpha has no values"),
        ("alpha", [True], "alpha has the value True; it must be a number"),
        ("unit", "tensor,,row", "unit has the value ''; it must be a word"),
        ("weights", "1,2", "in a grid it must be a list, or a list of such lists"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_value(field, value, words):
    with pytest.raises(errors.RecipeError) as raised:
        grids.parse(field, value)
    assert words in str(raised.value)


def test_a_grid_has_every_combination_the_last_field_fastest():
    grid = grids.Grid({"density": (0.1, 0.2), "alpha": (0.5, 1.0, 1.5)})
    found = grids.recipes(grid.points(), make)
    assert [(settings.density, settings.alpha) for settings in found] == [
        (0.1, 0.5),
        (0.1, 1.0),
        (0.1, 1.5),
        (0.2, 0.5),
        (0.2, 1.0),
        (0.2, 1.5),
    ]
    assert all(settings.gamma == 0.01 for settings in found)  # the method's


def test_the_default_grid_is_60_recipes():
    axes = {field: grids.parse(field, values) for field, values in grids.DEFAULT.items()}
    assert len(grids.recipes(grids.Grid(axes).points(), make)) == 60


def test_impossible_points_are_all_named():
    grid = grids.Grid({"density": (0.5, 0.9), "gamma": (0.01, 0.2)})
    with pytest.raises(errors.RecipeError) as raised:
        grids.recipes(grid.points(), make)
    message = str(raised.value)
    assert "1 of the grid's 4 points are no recipes; nothing was run" in message
    assert "density 0.9, gamma 0.2: density 0.9 + gamma 0.2 is more than 1" in message


def test_one_recipe_twice_counts_once():
    grid = grids.Grid({"method": ("breadcrumbs", "breadcrumbs"), "density": (0.14,)})
    assert len(grids.recipes(grid.points(), make)) == 1


def test_draws_are_those_of_the_seed_and_possible():
    grid = grids.Grid({"density": grids.Range(0.5, 1), "gamma": grids.Range(0, 0.5)})
    one, again, other = (grids.draws(grid, 20, seed, make) for seed in (1, 1, 2))
    assert one == again != other
    assert len({settings.digest for settings in one}) == 20
    assert all(settings.density + settings.gamma <= 1 for settings in one)


def test_more_draws_than_recipes_are_refused():
    with pytest.raises(errors.RecipeError, match=r"only 2 different recipes .* 3 were asked for"):
        grids.draws(grids.Grid({"alpha": (1.0, 2.0)}), 3, 0, make)


def test_an_interval_has_no_points_and_a_grid_has_an_end():
    with pytest.raises(errors.RecipeError, match=r"draw some of them \(--random N\)"):
        grids.Grid({"alpha": grids.Range(0, 1)}).points()
    many = tuple(range(1000))
    with pytest.raises(errors.RecipeError, match="the grid has 1000000 points"):
        grids.Grid({"alpha": many, "gamma": many}).points()


def test_a_drawn_number_is_short_and_inside():
    generator = random.Random(0)
    for _ in range(100):
        number = grids.Range(0.12344, 0.123449).draw(generator)
        assert 0.12344 <= number <= 0.123449


def test_a_file_has_a_text_a_value_or_a_list_per_field(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("density: 0.1:0.3:0.1\ngamma: 0\nconsensus: [none, mass]\n")
    assert grids.load(file) == {
        "density": (0.1, 0.2, 0.3),
        "gamma": (0,),
        "consensus": ("none", "mass"),
    }
