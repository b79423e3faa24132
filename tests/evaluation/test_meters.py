"""Each accuracy is measured once."""

import pytest
import tiny
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import caches, meters
from mlflow_breadcrumbs.models import image_sets, readers, task_heads


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


def head(classes=tuple(tiny.COLOURS)):
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    return task_heads.Head("colours", classes, ("{}",), "file", weight)


class Loader:
    """Gives a model, and counts how often it was asked."""

    def __init__(self, config):
        self.model = tiny.model(config)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.model


def test_known_accuracies_need_no_model(tmp_path, config):
    load, pairs = Loader(config), [(head(), tiny.image_set(4))]
    measure = meters.Meter(config, cache=caches.Cache(tmp_path / "cache")).accuracies
    first = measure(load, pairs, weights_digest="sha256:1")
    assert load.calls == 1
    assert measure(load, pairs, weights_digest="sha256:1") == first
    assert load.calls == 1
    measure(load, pairs, weights_digest="sha256:2")
    assert load.calls == 2


def test_an_accuracy_takes_the_name_that_its_images_have_now(tmp_path, config):
    load = Loader(config)
    measure = meters.Meter(config, cache=caches.Cache(tmp_path / "cache")).accuracies
    measure(load, [(head(), tiny.image_set(4))], weights_digest="sha256:1")
    (found,) = measure(
        load, [(head(), tiny.image_set(4, name="colours/new"))], weights_digest="sha256:1"
    )
    assert (load.calls, found.image_set) == (1, "colours/new")


@pytest.mark.parametrize("digest", [None, "sha256:1"])
def test_without_a_cache_or_a_digest_everything_is_measured(tmp_path, config, digest):
    load, pairs = Loader(config), [(head(), tiny.image_set(2))]
    kept = caches.Cache(tmp_path / "cache") if digest is None else None
    for _ in range(2):
        meters.Meter(config, cache=kept).accuracies(load, pairs, weights_digest=digest)
    assert load.calls == 2
    assert not (tmp_path / "cache").exists()


def test_classes_are_checked_before_anything_is_measured(config):
    load = Loader(config)
    pairs = [(head(), tiny.image_set(2)), (head(("blue", "green", "red")), tiny.image_set(2))]
    with pytest.raises(errors.TaskError, match="are in another order"):
        meters.Meter(config).accuracies(load, pairs)
    assert load.calls == 0


def test_an_image_that_vanished_is_named(tmp_path, config):
    tiny.image_tree(tmp_path / "images", 1)
    pool = readers.read_folders({"all": tmp_path / "images"})["all"]
    images = image_sets.ImageSet("colours/test", pool.names, pool.examples)
    (tmp_path / "images" / "red" / "0.png").unlink()
    measuring = meters.Meter(config, cache=caches.Cache(tmp_path / "cache"))
    with pytest.raises(errors.TaskError, match=r"red/0\.png can't be read"):
        measuring.accuracies(
            Loader(config), [(head(pool.names), images)], weights_digest="sha256:1"
        )
