"""Features and accuracies, and what happens when memory runs out."""

import logging
import math
from contextlib import contextmanager

import pytest
import tiny
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import scores, scoring
from mlflow_breadcrumbs.models import architecture, features, image_sets, task_heads
from mlflow_breadcrumbs.support import intervals


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


def head(classes=tuple(tiny.COLOURS), task="colours", seed=0):
    weight = torch.randn(len(classes), 12, generator=torch.Generator().manual_seed(seed))
    return task_heads.Head(task, tuple(classes), ("{}",), "file", weight)


class Hungry(torch.nn.Module):
    """A model that really asks the allocator for 2^50 bytes when a batch is too large."""

    def __init__(self, model, most):
        super().__init__()
        self.model = model
        self.most = most

    def encode_image(self, pixels):
        if len(pixels) > self.most:
            torch.empty(2**50, dtype=torch.uint8)
        return self.model.encode_image(pixels)


def test_accuracy_is_what_a_loop_over_single_images_finds(config):
    model, preprocess = tiny.model(config).eval(), architecture.preprocess(config)
    images, chosen = tiny.image_set(7), head()
    correct = 0
    with torch.no_grad():
        for image, label in images:
            vector = model.encode_image(preprocess(image)[None])
            vector = vector / vector.norm()
            correct += int((vector @ chosen.weight.T).argmax()) == label
    found = scoring.accuracy(model, chosen, images, preprocess, batch_size=4)
    assert (found.correct, found.total) == (correct, 21)
    assert found.value == correct / 21
    assert found.dataset_digest == images.digest
    assert found.image_set == "colours/test"
    assert found.to_dict()["accuracy"] == found.value


def test_the_same_call_gives_the_same_result(config):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    images = tiny.image_set(5)
    assert scoring.accuracy(model, head(), images, preprocess) == scoring.accuracy(
        model, head(), images, preprocess
    )
    first = features.extract(model, images, preprocess)
    assert torch.equal(first.values, features.extract(model, images, preprocess).values)
    torch.testing.assert_close(first.values.norm(dim=1), torch.ones(15))


def test_the_mode_of_the_model_is_kept(config):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    features.extract(model.train(), tiny.image_set(1), preprocess)
    assert model.training
    features.extract(model.eval(), tiny.image_set(1), preprocess)
    assert not model.training


def test_one_forward_pass_serves_several_heads(config):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    images = tiny.image_set(5)
    seen = features.extract(model, images, preprocess)
    for seed in range(3):
        found = scoring.score(seen, head(seed=seed), images)
        assert found == scoring.accuracy(model, head(seed=seed), images, preprocess)


def test_class_names_in_another_order_than_the_head(config):
    with pytest.raises(
        errors.TaskError,
        match=r"are in another order\. Head: blue, red, green\. Images of colours/test: red, gree",
    ):
        scoring.accuracy(
            tiny.model(config),
            head(("blue", "red", "green")),
            tiny.image_set(1),
            architecture.preprocess(config),
        )


def test_other_classes_than_the_head(config):
    with pytest.raises(errors.TaskError, match=r"'colours': the classes .* differ\. Head: a, b\."):
        scoring.check_classes(head(("a", "b")), tiny.image_set(1))


def test_an_empty_image_set(config):
    empty = image_sets.ImageSet("colours/test", tuple(tiny.COLOURS), ())
    with pytest.raises(errors.TaskError, match="The image set colours/test is empty"):
        features.extract(tiny.model(config), empty, architecture.preprocess(config))


def test_out_of_memory_goes_on_with_a_smaller_batch_and_says_so(config, caplog):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    images = tiny.image_set(7)
    with caplog.at_level(logging.WARNING):
        seen = features.extract(Hungry(model, 3), images, preprocess, batch_size=16)
    assert seen.batch_size == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"Out of memory on 'cpu' with batches of {n} images; going on with {n // 2}."
        for n in (16, 8, 4)
    ]
    expected = features.extract(model, images, preprocess, batch_size=2).values
    torch.testing.assert_close(seen.values, expected)
    found = scoring.accuracy(Hungry(model, 3), head(), images, preprocess, batch_size=16)
    assert found.batch_size == 2


def test_out_of_memory_with_one_image(config):
    with pytest.raises(
        errors.DeviceError, match=r"Out of memory on 'cpu' with one image of \(3, 16, 16\)"
    ):
        features.extract(
            Hungry(tiny.model(config), 0), tiny.image_set(1), architecture.preprocess(config)
        )


def test_other_errors_are_not_taken_for_a_lack_of_memory(config):
    class Broken(Hungry):
        def encode_image(self, pixels):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        features.extract(
            Broken(tiny.model(config), 1), tiny.image_set(1), architecture.preprocess(config)
        )


def test_progress_is_told_in_images(config):
    told = []

    @contextmanager
    def progress(description, *, total, unit=""):
        told.append((description, total, unit))
        yield lambda amount=1: told.append(amount)

    features.extract(
        tiny.model(config),
        tiny.image_set(4),
        architecture.preprocess(config),
        batch_size=5,
        show=progress,
    )
    assert told == [("evaluate colours/test", 12, "images"), 5, 5, 2]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Brown, Cai & DasGupta: z²/(n + z²)
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
        (90, 100, 0.8256, 0.9448),
    ],
)
def test_wilson_intervals(correct, total, low, high):
    found = intervals.wilson(correct, total)
    assert found == pytest.approx((low, high), abs=5e-5)
    assert 0 <= found.low <= correct / total <= found.high <= 1
    assert intervals.wilson(correct, total, 0.5).high <= found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Exactly, over all outcomes of 40 images: the probability that the interval holds p."""
    for p in (0.2, 0.5, 0.8):
        covered = 0.0
        for correct in range(41):
            low, high = intervals.wilson(correct, 40)
            if low <= p <= high:
                covered += math.comb(40, correct) * p**correct * (1 - p) ** (40 - correct)
        assert 0.92 < covered < 0.98


def test_outcomes_add_up(config):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    found = scoring.accuracy(model, head(), tiny.image_set(6), preprocess)
    counts = found.confusion()
    assert counts.sum(axis=1).tolist() == [6, 6, 6]
    assert int(counts.trace()) == found.correct
    rows = found.per_class()
    assert [row["class"] for row in rows] == list(tiny.COLOURS)
    assert sum(row["correct"] for row in rows) == found.correct
    wrong = {row["class"]: row["most_confused_with"] for row in rows if row["correct"] < 6}
    assert all(other and other != name for name, other in wrong.items())
    low, high = found.interval()
    assert found.to_dict()["accuracy_low"] == low <= found.value <= high
    assert scores.metrics([found]) == {
        "accuracy/colours": found.value,
        "accuracy_low/colours": low,
        "accuracy_high/colours": high,
        "average_accuracy": found.value,
    }
