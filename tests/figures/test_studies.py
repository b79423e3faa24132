"""Pictures: drawn from rows, and left out where there is nothing to see."""

import io
import itertools

import pytest
from PIL import Image

from mlflow_breadcrumbs.figures import studies


def rows(densities=(0.1, 0.2), gammas=(0, 0.01), alphas=(0.5, 1.0)):
    return [
        {
            "density": density,
            "gamma": gamma,
            "alpha": alpha,
            "images": None,
            studies.METRIC: 0.8 + density - gamma - abs(alpha - 1) / 10,
        }
        for density, gamma, alpha in itertools.product(densities, gammas, alphas)
    ]


def colours(content):
    """How many the picture has: a blank one has one."""
    return len(Image.open(io.BytesIO(content)).convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize("many", [False, True])
def test_pictures_of_a_sweep(many):
    found = rows(*[tuple(n / 100 for n in range(1, 20))] * 2, (0.5, 1.0)) if many else rows()
    best = max(found, key=lambda row: row[studies.METRIC])
    assert colours(studies.heat_map(found, best)) > 50
    assert colours(studies.lines(found, best)) > 50


def test_nothing_to_see_is_no_picture():
    one = rows((0.1,), (0,), (1.0,))
    assert studies.heat_map(one, one[0]) is None
    assert studies.lines(one, one[0]) is None
    assert studies.robustness([], 0.9) is None
    along_density = rows((0.1, 0.2), (0,), (1.0,))
    assert studies.heat_map(along_density, along_density[0]) is None
    assert studies.lines(along_density, along_density[0]) is not None


def test_the_equal_values_of_a_grid_still_make_a_map():
    found = [row | {studies.METRIC: 1.0} for row in rows()]
    assert studies.heat_map(found, found[0]) is not None


def test_other_pictures():
    robust = [
        {"field": field, "factor": factor, studies.METRIC: 0.9 - abs(1 - factor) / 10}
        for field in ("density", "alpha")
        for factor in (0.5, 1.5)
    ]
    assert colours(studies.robustness(robust, 0.9)) > 50
    scaled = [
        {
            "method": method,
            "protocol": protocol,
            "sources": size,
            studies.METRIC: 0.9,
            "lowest": 0.8,
            "highest": 0.95,
        }
        for method, protocol, size in itertools.product(
            ("ties", "breadcrumbs"), ("tuned", "carried"), (2, 3)
        )
    ]
    assert colours(studies.scaling(scaled)) > 50
    blamed = [
        {"kind": kind, "left_out": name, "gain": gain, "images": 10, "clear": gain > 0.1}
        for kind, name, gain in (
            ("source", "models:/a/1", 0.4),
            ("source", "models:/b/1", -0.1),
            ("layers", "visual.proj", 0.0),
        )
    ]
    assert colours(studies.blame(blamed, "A sentence. " * 30)) > 50
