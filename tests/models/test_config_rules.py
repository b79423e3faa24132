"""What a configuration from outside may say."""

import threading

import hub
import open_clip
import pytest
import tiny
from huggingface_hub import constants

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, config_rules


def text(**more):
    return {**tiny.MODEL, "text_cfg": {**tiny.TEXT, **more}}


def vision(**more):
    return {**tiny.MODEL, "vision_cfg": {**tiny.VISION, **more}}


def test_open_clips_own_architectures_are_allowed():
    for name in open_clip.list_models():
        config = architecture.load_config(name)
        assert architecture.parse_config(config.to_json(), origin="x.json") == config


@pytest.mark.parametrize("tag", ["openai", "webli", "datacompdr"])
def test_so_is_the_preprocessing_of_their_weights(tag):
    name = next(name for name, known in open_clip.list_pretrained() if known == tag)
    config = architecture.load_config(name, pretrained=tag)
    assert architecture.parse_config(config.to_json(), origin="x.json") == config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            text(tokenizer_kwargs={"trust_remote_code": True, "subfolder": "../../home"}),
            r"'text_cfg\.tokenizer_kwargs\.trust_remote_code' \(True\): not a key that it may "
            r"have; 'text_cfg\.tokenizer_kwargs\.subfolder' \('\.\./\.\./home'\): not a key",
        ),
        (text(tokenizer_kwargs={"bpe_path": "/etc/passwd"}), r"bpe_path' .* not a key that it may"),
        (text(tokenizer_kwargs={"reduction_mask": "syntax"}), "reduction_mask' .* not a key"),
        (text(hf_tokenizer_name="evil/x"), r"hf_tokenizer_name' \('evil/x'\): no architecture of"),
        (
            text(hf_model_name="evil/x"),
            r"hf_model_name' \('evil/x'\): no architecture of open_clip",
        ),
        (text(hf_model_name="../here"), r"hf_model_name' \('\.\./here'\): no architecture of"),
        (
            vision(timm_model_name="hf-hub:evil/x"),
            r"'vision_cfg\.timm_model_name' \('hf-hub:evil/x'\): not a plain name",
        ),
        (vision(timm_model_name="local-dir:/tmp"), "timm_model_name' .* not a plain name"),
        (vision(timm_model_name="a/b"), "timm_model_name' .* not a plain name"),
        (vision(act_kwargs={"inplace": True}), r"act_kwargs\.inplace' \(True\): not a key"),
        (vision(pool_type="../tok"), r"pool_type' \('\.\./tok'\): not a plain name"),
        (vision(layers=3_000_000), r"layers' \(3000000\): must be at most 256"),
        (vision(layers=True), r"layers' \(True\): must be a whole number"),
        (vision(**{"a\n\x1b[31m": 1}), r"'vision_cfg\.a\\n\\x1b\[31m' \(1\): not a key"),
        ({**tiny.MODEL, "cast_dtype": "x"}, r"'cast_dtype' \('x'\): not a key that it may have"),
        ({**tiny.MODEL, "text_cfg": None}, r"'text_cfg' \(None\): must be"),
        (
            {"model_cfg": tiny.MODEL, "preprocess_cfg": {"url": "http://x.org"}},
            r"'preprocess_cfg\.url' \('http://x\.org'\): not a key that it may have",
        ),
        (
            {"model_cfg": tiny.MODEL, "mlflow_breadcrumbs": {"architecture": ["x"]}},
            r"'mlflow_breadcrumbs\.architecture' \(\['x'\]\): must be a text",
        ),
    ],
)
def test_what_is_refused(tmp_path, content, words):
    path = tiny.config_file(tmp_path, content)
    with pytest.raises(errors.ArchitectureError, match=words) as caught:
        architecture.load_config(path)
    said = str(caught.value)
    assert said.startswith(f"{path} is refused: ")
    assert said.endswith("and names no code, path or repository.")
    assert said.isprintable()


def test_many_faults_are_counted():
    model = {**tiny.MODEL, "vision_cfg": {f"key{i}": i for i in range(20)}}
    with pytest.raises(errors.ArchitectureError, match=r"\(and 15 more\)"):
        config_rules.check(model, {}, {}, origin="x")


def test_a_long_value_is_cut():
    model = {**tiny.MODEL, "vision_cfg": {"k" * 5000: "v" * 5000}}
    with pytest.raises(errors.ArchitectureError) as caught:
        config_rules.check(model, {}, {}, origin="x")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content",
    [
        vision(timm_model_name="vit_tiny_patch16_224", timm_model_pretrained=True),
        {**tiny.MODEL, "text_cfg": {"hf_model_name": "roberta-base", "hf_model_pretrained": True}},
        text(hf_tokenizer_name="roberta-base"),
    ],
)
def test_nothing_asks_the_hub(tmp_path, monkeypatch, content):
    """Not for weights, configurations or tokenizers, though the network is there and a token."""
    config = tiny.config(tmp_path, content)
    with hub.counting(monkeypatch, str(tmp_path / "cache")) as asked:
        for make in (architecture.build, architecture.outline, architecture.tokenizer):
            try:
                make(config)
            except errors.ArchitectureError as error:
                assert "can't be loaded" in str(error) or "`hf download" in str(error)  # noqa: PT017
        assert not constants.HF_HUB_OFFLINE, "it is put back"
    assert asked == []


def test_a_text_tower_of_hugging_face_says_what_it_needs(tmp_path, monkeypatch):
    content = {**tiny.MODEL, "text_cfg": {"hf_model_name": "roberta-base"}}
    config = tiny.config(tmp_path, content)
    with (
        hub.counting(monkeypatch, str(tmp_path / "cache")),
        pytest.raises(errors.ArchitectureError) as caught,
    ):
        architecture.build(config)
    assert "without asking the network. `hf download roberta-base config.json` puts it there" in (
        str(caught.value)
    )


def test_two_threads_without_the_hub(monkeypatch):
    """The first to leave does not let the other one out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with architecture.offline():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with architecture.offline():
        thread.start()
        assert inside.wait(60)
    assert constants.HF_HUB_OFFLINE
    leave.set()
    thread.join()
    assert not constants.HF_HUB_OFFLINE
