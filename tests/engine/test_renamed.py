"""Tensors whose names in memory are others than in the file: against transformers itself."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mlflow_breadcrumbs.engine import adapters, checkpoints, renamed

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
DINO = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
SOUND = {key: value for key, value in SMALL.items() if key not in ("image_size", "patch_size")}
MODELS = {
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        "ASTConfig",
        SOUND | {"max_length": 32, "num_mel_bins": 16},
    ),
    "beit": ("BeitForImageClassification", "BeitConfig", SMALL),
    "deit": ("DeiTForImageClassification", "DeiTConfig", SMALL),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        DINO,
    ),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", SMALL),
    "vit": ("ViTForImageClassification", "ViTConfig", SMALL),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", SMALL),
    "vivit": (
        "VivitForVideoClassification",
        "VivitConfig",
        SMALL | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    ),
}


def made(kind, folder):
    """A small model of a type, saved."""
    model, config, settings = MODELS[kind]
    torch.manual_seed(0)
    found = getattr(transformers, model)(getattr(transformers, config)(**settings))
    found.save_pretrained(folder)
    return found


def test_every_type_has_a_model_here():
    assert MODELS.keys() == renamed.RULES.keys()


@pytest.mark.parametrize("kind", MODELS)
def test_the_names_of_a_model_of_transformers(kind, tmp_path):
    model = made(kind, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = tuple(file.keys())
    memory = set(model.state_dict())
    assert memory != set(names)
    for name in names:
        found = renamed.in_memory(name, kind)
        assert found in memory, name
        if found != name:
            assert renamed.in_file(found, names) == name
    assert renamed.in_memory("encoder.layer.0.output.dense.weight", "bert") == (
        "encoder.layer.0.output.dense.weight"
    )
    assert renamed.in_file("layers.7.attention.q_proj.weight", names) is None


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_an_adapter_with_names_of_memory_is_what_peft_makes(kind, tmp_path):
    model = made(kind, tmp_path / "base")
    settings = {"target_modules": ["q_proj", "o_proj"], "alpha_pattern": {"o_proj": 3}}
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    theirs, before = (
        load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base")
    )
    changed = 0
    with (
        checkpoints.Checkpoint.open(tmp_path / "base") as base,
        adapters.open_on(base, tmp_path / "adapter") as view,
    ):
        for name in view.names:
            torch.testing.assert_close(view.tensor(name), theirs[name], rtol=0, atol=1e-6)
            changed += not torch.equal(theirs[name], before[name])
    assert changed == 4
