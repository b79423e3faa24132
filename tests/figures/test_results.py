"""Pictures of few and of many: that each is drawn, whole and of a size to look at."""

import io

import numpy as np
import pytest
from PIL import Image

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends.cpu import geometry
from mlflow_breadcrumbs.evaluation import scoring
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.search import advice, compare


def opened(png):
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    values = np.asarray(picture.convert("L"))
    assert values.std() > 5  # something is drawn
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    assert (edge > 200).mean() > 0.9  # and nothing runs over the edge
    return picture


def comparison(sources):
    generator = np.random.default_rng(0)
    layers = {}
    for number in range(6):
        tau = generator.normal(size=(sources, 50)) * number
        layers[f"blocks.{number}"] = geometry.Geometry(
            50, 10.0, tau @ tau.T, (tau**2).sum(1) / 2, np.eye(sources, dtype=int) * 9,
            np.zeros((sources, sources), int),
        )  # fmt: skip
    return compare.Comparison(
        base="models:/base/1",
        sources=tuple(f"models:/a-name-that-goes-on-and-on-{i}/1" for i in range(sources)),
        recipe=recipe.MergeRecipe(density=0.5),
        layers=layers,
        total=geometry.total(layers.values(), sources),
        stored=(1,) * sources,
        model_parameters=300,
        findings=(advice.Finding("none", (), ""),),
    )


@pytest.mark.parametrize("sources", [1, 2, 8, 40])
def test_heat_maps(sources):
    assert opened(comparison(sources).picture()).width < 6000


def colour(png, low, high):
    """The share of pixels whose red is above their blue by so much."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    warmth = pixels[..., 0] - pixels[..., 2]
    return ((warmth > low) & (warmth < high)).mean()


def test_cosines_of_either_sign_differ_in_colour():
    names, moved = ("models:/a/1", "models:/b/1"), {"text": np.array([0.0, 0.0])}

    def drawn(cosine):
        return results.heat_map(names, np.array([[1, cosine], [cosine, 1]]), moved)

    warm, cold = (0.05 * np.array([1, -1])).tolist()
    scale = colour(drawn(0.0), 40, 256)  # the colour bar's own
    assert colour(drawn(cold), 40, 256) > 2 * scale
    assert colour(drawn(warm), 40, 256) == pytest.approx(scale, rel=0.2)
    one = results.heat_map(names[:1], np.array([[1.0]]), {"text": np.array([0.1])})
    assert opened(one).width < opened(drawn(warm)).width


def test_a_few_errors_among_many_images_are_seen():
    right = np.diag([1000, 1000, 1000])
    wrong = right.copy()
    wrong[0, 2] = 5
    pictures = [results.confusion(("a", "b", "c"), counts, "t") for counts in (right, wrong)]
    shares = [colour(picture, 80, 256) for picture in pictures]
    assert shares[1] > shares[0] + 0.02


@pytest.mark.parametrize("classes", [1, 3, 30, 200])
def test_confusion_matrices(classes):
    names = tuple(f"class {number}" for number in range(classes))
    outcomes = tuple((label, label, 3) for label in range(classes))
    found = scoring.Accuracy(
        "t", "t/test", 3 * classes, 3 * classes, "file", "sha256:0", 1, 0.0, names, outcomes
    )
    assert opened(found.picture()).width < 2500


@pytest.mark.parametrize("tasks", [1, 12])
def test_bars(tasks):
    kinds = ("accuracy", "finetuned_accuracy", "zero_shot_accuracy")
    row = {key: value for kind in kinds for key, value in (
        (kind, 1.0), (f"{kind}_low", 0.7), (f"{kind}_high", 1.0))}  # fmt: skip
    rows = [row | {"task": f"task {i}", "normalized_accuracy": 1.0} for i in range(tasks)]
    without = results.bars(rows)
    assert opened(without).width > 500
    assert opened(results.bars([row | {"chance_accuracy": 0.25} for row in rows])) != opened(
        without
    )
