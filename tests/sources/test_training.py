"""Training learns, touches the image tower only, and goes on where it was stopped."""

import dataclasses
import math

import pytest
import tiny
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.models import architecture, task_heads
from mlflow_breadcrumbs.sources import training

SETTINGS = training.TrainingSettings(epochs=3, batch_size=8, learning_rate=3e-3, warmup_steps=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


def head(seed=0):
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) * 5
    return task_heads.Head("colours", tuple(tiny.COLOURS), ("{}",), "file", weight)


def digest(model):
    return checkpoints.state_dict_digest(model.state_dict())


def test_it_learns_and_leaves_all_but_the_image_tower_alone(config):
    model = tiny.model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen = head()
    weight = chosen.weight.clone()
    history = training.train(
        model,
        config,
        chosen,
        tiny.image_set(16, "colours/train"),
        dataclasses.replace(SETTINGS, epochs=6),
        validation_set=tiny.image_set(8, "colours/validation", seed=50),
    )
    assert history[-1].validation_accuracy > 0.9
    assert history[-1].train_loss < history[0].train_loss
    assert [epoch.epoch for epoch in history] == list(range(1, 7))
    assert history[-1].step == 36
    assert torch.equal(chosen.weight, weight)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)
    assert not model.training


def test_of_a_low_rank_only_the_matrices_of_the_tower_change_and_by_that_rank(config):
    model = tiny.model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    how = dataclasses.replace(SETTINGS, epochs=6, rank=2)
    history = training.train(model, config, head(), tiny.image_set(16, "colours/train"), how)
    assert history[-1].train_loss < history[0].train_loss
    after = model.state_dict()
    assert set(after) == set(before)  # a whole model again, without the thin matrices
    changed = {
        name: after[name] - old for name, old in before.items() if (after[name] != old).any()
    }
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in changed
    assert "visual.transformer.resblocks.0.mlp.c_fc.weight" in changed
    for name, change in changed.items():
        assert name.startswith("visual.transformer.")
        assert change.dim() == 2
        values = torch.linalg.svdvals(change.double())
        assert values[1] > 0
        assert values[2] < 1e-4 * values[0]  # but for float32's rounding of the weights
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_same_call_gives_the_same_weights(config):
    digests = set()
    for workers in (None, 0, 2):
        model = tiny.model(config)
        torch.manual_seed(len(digests))  # the caller's generator plays no part
        training.train(model, config, head(), tiny.image_set(6), SETTINGS, workers=workers)
        digests.add(digest(model))
    assert len(digests) == 1
    other = tiny.model(config)
    training.train(other, config, head(), tiny.image_set(6), dataclasses.replace(SETTINGS, seed=1))
    assert digest(other) not in digests


def test_the_callers_random_numbers_are_left_alone(config):
    torch.manual_seed(5)
    expected = torch.rand(1)
    model = tiny.model(config)
    torch.manual_seed(5)
    training.train(model, config, head(), tiny.image_set(2), SETTINGS)
    assert torch.equal(torch.rand(1), expected)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(("after", "rank"), [(1, 0), (2, 0), (1, 2)])
def test_a_stopped_training_ends_with_the_same_weights(config, tmp_path, after, rank):
    images, told = tiny.image_set(6), []
    how = dataclasses.replace(SETTINGS, rank=rank)
    whole = tiny.model(config)
    expected = training.train(whole, config, head(), images, how)

    def stop(epoch):
        if epoch.epoch == after:
            raise Stopped

    with pytest.raises(Stopped):
        training.train(
            tiny.model(config),
            config,
            head(),
            images,
            how,
            folder=tmp_path / "state",
            on_epoch=stop,
        )
    again = tiny.model(config)
    history = training.train(
        again,
        config,
        head(),
        images,
        how,
        folder=tmp_path / "state",
        on_epoch=told.append,
    )
    assert digest(again) == digest(whole)
    assert history == expected == tuple(told)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["training.pt"]


def test_the_state_of_another_training_is_not_resumed(config, tmp_path):
    images = tiny.image_set(4)
    training.train(tiny.model(config), config, head(), images, SETTINGS, folder=tmp_path)
    other = dataclasses.replace(SETTINGS, learning_rate=1e-4)
    with pytest.raises(errors.CheckpointError, match=r"belongs to a training of another model"):
        training.train(tiny.model(config), config, head(), images, other, folder=tmp_path)
    with pytest.raises(errors.CheckpointError, match="Give another folder, or delete it"):
        training.train(tiny.model(config, 1), config, head(), images, SETTINGS, folder=tmp_path)
    (tmp_path / "training.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(errors.CheckpointError, match=r"is damaged .* Delete it to start again"):
        training.train(tiny.model(config), config, head(), images, SETTINGS, folder=tmp_path)


def test_batch_normalization_keeps_its_statistics(tmp_path):
    """Its counter of batches is an integer, and a merge takes no changed integers."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    config = tiny.config(tmp_path, {**tiny.MODEL, "vision_cfg": vision})
    model = tiny.model(config)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    settings = dataclasses.replace(SETTINGS, steps=2)
    training.train(model, config, head(), tiny.image_set(4), settings)
    assert any(name.endswith("num_batches_tracked") for name in before)
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name


def test_bfloat16_on_a_cpu_is_near_and_not_the_same_and_auto_is_float32(config):
    def trained(precision):
        model = tiny.model(config)
        settings = dataclasses.replace(SETTINGS, steps=4, precision=precision)
        history = training.train(model, config, head(), tiny.image_set(8), settings)
        return model, history[-1].train_loss

    (exact, loss), (rounded, other), (auto, _) = map(trained, ("float32", "bfloat16", "auto"))
    assert digest(auto) == digest(exact)
    assert digest(rounded) != digest(exact)
    assert other == pytest.approx(loss, rel=0.05)  # bfloat16 has 8 significant bits
    assert all(tensor.dtype == torch.float32 for tensor in rounded.state_dict().values())


def test_steps_cut_the_last_epoch_short(config):
    settings = dataclasses.replace(SETTINGS, steps=4)
    history = training.train(tiny.model(config), config, head(), tiny.image_set(8), settings)
    assert [epoch.step for epoch in history] == [3, 4]


def test_the_schedule():
    settings = training.TrainingSettings(learning_rate=1.0, warmup_steps=4)
    assert [settings.rate(step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert settings.rate(4, 12) == 1
    assert settings.rate(8, 12) == pytest.approx(0.5)
    assert settings.rate(11, 12) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert training.TrainingSettings(learning_rate=1.0).rate(0, 100) == pytest.approx(0.1)
    assert training.TrainingSettings(learning_rate=1.0).rate(0, 10**6) == pytest.approx(1 / 500)


@pytest.mark.parametrize(
    ("field", "value", "range_"),
    [
        ("epochs", 0, "at least 1"),
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("learning_rate", 0, "above 0 and at most 1"),
        ("learning_rate", math.nan, "above 0 and at most 1"),
        ("warmup_steps", -1, "0 or more"),
        ("rank", -1, "0 or more"),
        ("weight_decay", -0.1, "0 to 1"),
        ("clip", 0, "positive and finite"),
        ("label_smoothing", 1, "0 to below 1"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
    ],
)
def test_settings_out_of_range(field, value, range_):
    with pytest.raises(errors.RecipeError, match=f"{field} is {value}; it must be {range_}"):
        training.TrainingSettings(**{field: value})


def test_a_diverging_loss(config):
    model = tiny.model(config)
    model.visual.proj.data[0, 0] = torch.inf
    with pytest.raises(
        errors.RecipeError, match=r"The loss became nan in step 1\. Use a smaller l"
    ):
        training.train(model, config, head(), tiny.image_set(8), SETTINGS)


def test_out_of_memory(config):
    model = tiny.model(config)
    model.visual.conv1.register_forward_hook(lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(errors.DeviceError, match=r"with 8 images per step\. Use a smaller --batch"):
        training.train(model, config, head(), tiny.image_set(8), SETTINGS)


def test_other_classes_than_the_head(config):
    wrong = dataclasses.replace(head(), classes=("red", "blue", "green"))
    with pytest.raises(errors.TaskError, match="are in another order"):
        training.train(tiny.model(config), config, wrong, tiny.image_set(2), SETTINGS)


def test_an_image_only_backbone_trains(tmp_path):
    config = tiny.config(tmp_path, tiny.IMAGE_ONLY)
    model = architecture.build(config)
    training.train(model, config, head(), tiny.image_set(2), SETTINGS)
