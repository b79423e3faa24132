"""Checkpoints of other tools: taken where the mapping is plain, else what is in the way is said."""

import argparse
import re
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch.optim import swa_utils

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture
from mlflow_breadcrumbs.sources import state_dicts

IDS = torch.arange(16)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    config = tiny.config(tmp_path_factory.mktemp("clip"))
    return config, tiny.model(config)


def fitted(path, clip):
    config, model = clip
    return state_dicts.fit(
        state_dicts.read(path),
        model.state_dict(),
        path=path,
        architecture="tiny",
        has_text_tower=config.has_text_tower,
    )


def refusal(path, clip):
    with pytest.raises(errors.CheckpointError) as caught:
        fitted(path, clip)
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


class ImageEncoder(torch.nn.Module):
    """As in the paper's public code: an open_clip model without its text transformer."""

    def __init__(self, model, *, keep_text=False):
        super().__init__()
        self.model = model
        if not keep_text:
            del self.model.transformer


def wrapped(state):
    """Every form of one state, by what wrote it."""
    compiled = {re.sub(r"^visual\.", "visual._orig_mod.", n): t for n, t in state.items()}
    return {
        "plain": (state, ()),
        "torch.compile": (prefixed(state, "_orig_mod."), ()),
        "a compiled tower": (compiled, ()),
        "DDP of torch.compile": (prefixed(state, "module._orig_mod."), ()),
        "FSDP": (prefixed(state, "_fsdp_wrapped_module."), ()),
        "a class around it": (prefixed(state, "model."), ()),
        "Lightning": ({"state_dict": prefixed(state, "model."), "epoch": 3, "hyper": {"a": 1}}, ()),
        "another name": (prefixed(state, "clip.backbone."), ()),
        "open_clip": ({"epoch": 1, "name": "x", "state_dict": prefixed(state, "module.")}, ()),
        "an EMA container": ({"ema": state, "optimizer": {"state": {}, "param_groups": []}}, ()),
        "two containers": ({"checkpoint": {"model": state, "args": {"a": 1}}}, ()),
        "AveragedModel": (
            prefixed(state, "module.") | {"n_averaged": torch.tensor(3)}, ("n_averaged",)
        ),
        "transformers": (state | {"text.embeddings.position_ids": IDS.clone(), "position_ids": IDS},
                         ("position_ids", "text.embeddings.position_ids")),
        "OpenAI": (
            state | {name: torch.tensor(7) for name in
                     ("input_resolution", "context_length", "vocab_size")},
            ("context_length", "input_resolution", "vocab_size"),
        ),
    }  # fmt: skip


FORMS = tuple(wrapped({"visual.x": torch.ones(1)}))


@pytest.mark.parametrize("form", FORMS)
def test_the_mapping_is_plain(tmp_path, clip, form):
    state = clip[1].state_dict()
    content, dropped = wrapped(state)[form]
    torch.save(content, tmp_path / "x.pt")
    found = fitted(tmp_path / "x.pt", clip)
    assert found.dropped == dropped
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.items())
    if form in ("torch.compile", "transformers", "another name"):  # tensors alone
        save_file(content, tmp_path / "x.safetensors")
        assert fitted(tmp_path / "x.safetensors", clip).tensors.keys() == state.keys()


def test_torchs_own_averaged_model(tmp_path, clip):
    averaged = swa_utils.AveragedModel(clip[1])
    torch.save(averaged.state_dict(), tmp_path / "x.pt")
    assert fitted(tmp_path / "x.pt", clip).dropped == ("n_averaged",)


def test_the_papers_image_encoder_for_an_image_only_architecture(tmp_path, clip):
    state = ImageEncoder(tiny.model(clip[0])).state_dict()
    torch.save(state, tmp_path / "x.pt")
    config = tiny.config(tmp_path, tiny.IMAGE_ONLY)
    found = fitted(tmp_path / "x.pt", (config, architecture.build(config)))
    visual = {n: t for n, t in tiny.model(clip[0]).state_dict().items() if n.startswith("visual.")}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in visual.items())
    assert found.dropped == (
        "ln_final.bias", "ln_final.weight", "logit_scale", "positional_embedding",
        "text_projection", "token_embedding.weight",
    )  # fmt: skip
    words = refusal(tmp_path / "x.pt", clip)
    assert "missing: transformer.resblocks.0.attn.in_proj_bias, " in words
    assert (
        "It is an image tower alone, under 'visual.': give `--architecture FILE`, a JSON "
        "configuration without `text_cfg`, for it and for its base." in words
    )


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual.", "encoder."])
def test_a_bare_image_tower(tmp_path, prefix):
    config = tiny.config(tmp_path, tiny.IMAGE_ONLY)
    model = architecture.build(config)
    bare = {n.removeprefix("visual."): t for n, t in model.state_dict().items() if "visual" in n}
    torch.save(prefixed(bare, prefix), tmp_path / "x.pt")
    found = fitted(tmp_path / "x.pt", (config, model))
    assert torch.equal(found.tensors["visual.conv1.weight"], bare["conv1.weight"])
    assert found.dropped == ()


def test_two_sets_of_weights_are_not_chosen_from(tmp_path, clip):
    state = clip[1].state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "both.pt")
    words = refusal(tmp_path / "both.pt", clip)
    assert "holds 2 sets of weights: in 'state_dict', in 'state_dict_ema'. Choose one: " in words
    assert fitted(convert(words, tmp_path), clip).dropped == ()

    both = prefixed(state, "online_model.") | prefixed(state, "ema_model.")
    torch.save(both | {"initted": torch.tensor(1)}, tmp_path / "ema.pt")
    words = refusal(tmp_path / "ema.pt", clip)
    assert "holds 2 sets of weights: under 'ema_model.', under 'online_model.'. Choose" in words
    assert fitted(convert(words, tmp_path), clip).dropped == ()

    torch.save(state | prefixed(state, "teacher."), tmp_path / "bare.pt")
    words = refusal(tmp_path / "bare.pt", clip)
    assert "holds 2 sets of weights: under '', under 'teacher.'. Choose" in words
    assert fitted(convert(words, tmp_path), clip).dropped == ()


def test_extra_tensors_are_named_and_where_the_others_are(tmp_path, clip):
    state = prefixed(clip[1].state_dict(), "backbone.")
    torch.save(state | {"classifier.weight": torch.ones(3, 12)}, tmp_path / "x.pt")
    words = refusal(tmp_path / "x.pt", clip)
    assert "extra: classifier.weight. All of the architecture's tensors are there under " in words
    assert "'backbone.'; leave out the extra ones where it was made" in words


def test_a_prefix_with_a_tensor_missing_is_named(tmp_path, clip):
    state = prefixed(clip[1].state_dict(), "backbone.")
    del state["backbone.ln_final.bias"]
    torch.save(state, tmp_path / "x.pt")
    words = refusal(tmp_path / "x.pt", clip)
    assert "missing: ln_final.bias. Its names begin with 'backbone.'; most of the" in words


def test_one_tensor_under_two_names(tmp_path, clip):
    torch.save({"a.x": torch.ones(1), "a._orig_mod.x": torch.ones(1)}, tmp_path / "x.pt")
    words = refusal(tmp_path / "x.pt", clip)
    assert "has the same tensor under several names: a._orig_mod.x, a.x. Save the" in words


def convert(message, folder):
    """Run the code that a message suggests, as a user would; what it writes."""
    (code,) = re.findall(r"`([^`]*weights\.pt'\))`, and import weights\.pt", message)
    subprocess.run([sys.executable, "-c", f"import torch; {code}"], cwd=folder, check=True)
    return folder / "weights.pt"


@pytest.mark.parametrize("form", ["module", "state_dict", "model", "a module in it", "tensors"])
def test_the_conversion_works_on_what_it_is_suggested_for(tmp_path, clip, form):
    state, said = clip[1].state_dict(), argparse.Namespace(lr=0.1)
    content = {
        "module": clip[1],
        "state_dict": {"state_dict": state, "args": said},
        "model": {"model": state, "args": said, "epoch": 3},
        "a module in it": {"module": clip[1], "args": said},
        "tensors": state | {"args": said},
    }[form]
    torch.save(content, tmp_path / "x.pt")
    words = refusal(tmp_path / "x.pt", clip)
    assert "is refused: it is a pickle that would run code when loaded (" in words
    assert fitted(convert(words, tmp_path), clip).tensors.keys() == state.keys()


class Scripted(torch.nn.Module):
    """A module that TorchScript takes, with the tensors of a CLIP."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_conversion_of_torchscript_works(tmp_path, clip):
    torch.jit.script(Scripted()).save(str(tmp_path / "x.pt"))
    words = refusal(tmp_path / "x.pt", clip)
    assert "is refused: it is a TorchScript archive. If you trust it, convert it" in words
    found = state_dicts.read(convert(words, tmp_path))
    assert sorted(found) == ["visual.bias", "visual.weight"]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), "its tensor 'w' is sparse or quantized"),
        (torch.empty(3, 3, device="meta"), "its tensor 'w' has no numbers"),
    ],
)
def test_tensors_that_are_not_dense(tmp_path, tensor, words):
    torch.save({"w": tensor}, tmp_path / "x.pt")
    with pytest.raises(errors.CheckpointError, match=words):
        state_dicts.read(tmp_path / "x.pt")
