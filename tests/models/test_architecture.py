"""Architectures by name and by file, and what open_clip makes of what we store."""

import json
import logging

import open_clip
import pytest
import tiny
import torch
from huggingface_hub import constants
from open_clip import transform

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.models import architecture


def test_a_name_gives_open_clips_own_configuration():
    config = architecture.load_config("ViT-B-32")
    assert config.model_cfg == open_clip.get_model_config("ViT-B-32")
    assert config.embed_dim == 512
    assert config.preprocess_cfg["size"] == 224
    assert architecture.load_config("ViT-B/32") == config


def test_a_pretrained_tag_brings_its_activation_and_preprocessing():
    openai = architecture.load_config("ViT-B-32", pretrained="openai")
    laion = architecture.load_config("ViT-B-32", pretrained="laion2b_s34b_b79k")
    assert openai.model_cfg["quick_gelu"] is True
    assert laion.model_cfg["quick_gelu"] is False
    siglip = architecture.load_config("ViT-B-16-SigLIP", pretrained="webli")
    assert siglip.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    assert siglip.preprocess_cfg["resize_mode"] == "squash"


def test_unknown_names_and_tags_name_the_close_ones():
    with pytest.raises(errors.ArchitectureError, match=r"Unknown .* Did you mean ViT-B-32"):
        architecture.load_config("vit-b-33")
    with pytest.raises(errors.ArchitectureError, match="Did you mean openai"):
        architecture.load_config("ViT-B-32", pretrained="openia")


def test_a_config_file_makes_the_round_trip(tmp_path):
    config = tiny.config(tmp_path)
    again = architecture.parse_config(config.to_json(), origin="open_clip_config.json")
    assert again == config
    assert again.architecture == "tiny"
    assert again.has_text_tower


def test_a_whole_hub_config_keeps_its_preprocessing(tmp_path):
    content = {"model_cfg": tiny.MODEL, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    config = tiny.config(tmp_path, content)
    assert config.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    assert config.preprocess_cfg["size"] == 16


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object but list"),
        ('{"embed_dim": 8}', "needs 'embed_dim' .* and 'vision_cfg'"),
        ('{"embed_dim": "8", "vision_cfg": {}}', "needs 'embed_dim'"),
        ('{"model_cfg": 3}', "must be JSON objects"),
    ],
)
def test_bad_files_are_explained(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(errors.ArchitectureError, match=words):
        architecture.load_config(str(path))


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(errors.ArchitectureError, match="can't be read: No such file"):
        architecture.load_config(str(tmp_path / "absent.json"))


def test_what_open_clip_refuses_is_explained(tmp_path):
    content = {**tiny.MODEL, "vision_cfg": {**tiny.VISION, "timm_model_name": "vit_of_nobody"}}
    config = tiny.config(tmp_path, content)
    with pytest.raises(errors.ArchitectureError, match=r"can't build .*'tiny'.*vit_of_nobody"):
        architecture.build(config)


def test_build_gives_the_module_that_open_clip_gives(tmp_path):
    config = tiny.config(tmp_path)
    (tmp_path / architecture.CONFIG_FILE).write_text(config.to_json())
    torch.manual_seed(7)
    theirs, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path}", load_weights=False
    )
    ours = tiny.model(config, seed=7)
    for (name, one), (_, other) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    assert str(architecture.preprocess(config)) == str(preprocess)


def test_building_says_nothing_and_leaves_logging_alone(tmp_path, capfd):
    before = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    architecture.build(tiny.config(tmp_path))
    assert (logging.getLogger().handlers, logging.getLogger().filters) == before
    assert "randomly" not in capfd.readouterr().err


@pytest.mark.parametrize("custom_text", [False, True])
def test_an_image_only_backbone_loads_in_open_clip(tmp_path, custom_text):
    """The placeholder is a text tower that open_clip accepts: same bits, same outputs."""
    content = {**tiny.IMAGE_ONLY, "custom_text": custom_text}
    config = tiny.config(tmp_path, content)
    assert not config.has_text_tower
    model = tiny.model(config).eval()
    flavor.save_model(tmp_path / "saved", config=config, model=model)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/saved")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    image = torch.stack([preprocess(image) for image, _ in tiny.image_set(2)])
    with torch.inference_mode():
        assert torch.equal(loaded.eval().encode_image(image), model.encode_image(image))
    again = flavor.load_config(tmp_path / "saved")
    assert not again.has_text_tower
    others = [t for n, t in model.state_dict().items() if not n.startswith("visual.")]
    assert sum(tensor.numel() for tensor in others) < 30
    with pytest.raises(errors.ArchitectureError, match="has no text tower, so it has no tok"):
        architecture.tokenizer(again)


def test_the_placeholder_is_the_smallest(tmp_path):
    """With no layers at all, open_clip divides by zero; hold on to the reason for `layers: 1`."""
    text = {**architecture.PLACEHOLDER_TEXT_TOWER, "layers": 0}
    with pytest.raises(errors.ArchitectureError, match=r"text_cfg.layers. \(0\): must be at least"):
        tiny.config(tmp_path, {**tiny.IMAGE_ONLY, "text_cfg": text})
    config = tiny.config(tmp_path, tiny.IMAGE_ONLY)
    config.model_cfg["text_cfg"] = text
    with pytest.raises(errors.ArchitectureError, match="ZeroDivisionError"):
        architecture.build(config)


def test_the_tokenizer_is_open_clips(tmp_path):
    tokens = architecture.tokenizer(tiny.config(tmp_path))(["a photo of a cat."])
    assert tokens.shape == (1, 16)
    assert torch.equal(
        tokens, open_clip.get_tokenizer("ViT-B-32", context_length=16)("a photo of a cat.")
    )


def test_pretrained_weights_without_a_network_are_explained(tmp_path, monkeypatch, capsys):
    # What HF_HUB_OFFLINE and HF_HOME set when huggingface_hub is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = architecture.load_config("ViT-B-32", pretrained="laion2b_s34b_b79k")
    with pytest.raises(errors.ArchitectureError) as caught:
        architecture.build_pretrained(config, "laion2b_s34b_b79k")
    told = str(caught.value)
    assert "weights 'laion2b_s34b_b79k' for ViT-B-32 can't be loaded" in told
    assert "Check the connection, or give a checkpoint file." in told
    assert "\n" not in told
    assert capsys.readouterr().out == ""


def test_the_stored_json_is_plain(tmp_path):
    content = json.loads(tiny.config(tmp_path).to_json())
    assert set(content) == {"model_cfg", "preprocess_cfg", "mlflow_breadcrumbs"}
    assert content["model_cfg"] == tiny.MODEL


def test_the_outline_has_the_models_tensors_without_their_numbers(tmp_path):
    config = tiny.config(tmp_path)
    outline = architecture.outline(config).state_dict()
    built = architecture.build(config).state_dict()
    assert {tensor.device.type for tensor in outline.values()} == {"meta"}
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in outline.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in built.items()
    ]


def test_a_complete_preprocessing_is_what_open_clip_would_make_of_it():
    fields = transform.merge_preprocess_dict(transform.PreprocessCfg(), {})
    assert tuple(fields) == architecture.PREPROCESS_FIELDS
