"""Small models of many libraries, as versions that their teams would register.

Each kind makes a model, logs one as its own library's users do, loads one in its own library, and
gives what it answers to fixed inputs.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import peft
import safetensors.torch
import sentence_transformers
import timm
import torch
import torchvision
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = 27
TEXTS = tuple(
    " ".join(f"w{(7 * row + 5 * place) % WORDS}" for place in range(4)) for row in range(24)
)
SMALL = {
    "vocab_size": WORDS + 5,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
PROMPTS = ("w1 w2", "w3 w4", "w5 w6")
ADAPTER = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "dense"]}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One library's models."""

    make: Callable[[], torch.nn.Module]
    log: Callable[[str, torch.nn.Module, Path], None]
    """Registers a model under a name; the folder is empty."""
    load: Callable[[Path], torch.nn.Module]
    """From the folder of a version's artifacts."""
    answer: Callable[[torch.nn.Module], torch.Tensor]
    """[inputs, classes] scores for inputs that never change."""
    tune: Callable[[torch.nn.Module, Path], torch.nn.Module] = lambda model, folder: model
    """What is trained on the base; the base itself, or an adapter on it."""


def pixels(side: int) -> torch.Tensor:
    """24 images [3, side, side] of numbers in −1…1 that never change."""
    drawn = np.random.default_rng(5).uniform(-1, 1, (24, 3, side, side))
    return torch.from_numpy(drawn.astype(np.float32))


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Of whole words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]
    known = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    words = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[EOS]",
    )


def rows(texts: tuple[str, ...] = TEXTS) -> dict[str, torch.Tensor]:
    """The token ids of texts of one length."""
    found = tokenizer()(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def logged_by_transformers(task: str, **parts: object) -> Callable[..., None]:
    """By MLflow's own flavor."""

    def log(name: str, model: torch.nn.Module, folder: Path) -> None:
        with mlflow.start_run():
            mlflow.transformers.log_model(
                {"model": model, **{key: make() for key, make in parts.items()}},
                name="model",
                task=task,
                registered_model_name=name,
                pip_requirements=["torch", "transformers"],
            )

    return log


def from_transformers(folder: Path) -> torch.nn.Module:
    """The model of a version that MLflow's own flavor can load."""
    return mlflow.transformers.load_model(str(folder), return_type="components")["model"].eval()


def logged_as_folder(write: Callable[[torch.nn.Module, Path], None]) -> Callable[..., None]:
    """A folder that no flavor knows of, registered as it is."""

    def log(name: str, model: torch.nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write(model, folder)
        client = mlflow.MlflowClient()
        client.create_registered_model(name)
        client.create_model_version(name, source=folder.as_uri())

    return log


def state_into(make: Callable[[], torch.nn.Module]) -> Callable[[Path], torch.nn.Module]:
    """A model with the one safetensors file of a folder."""

    def load(folder: Path) -> torch.nn.Module:
        (file,) = folder.rglob("*.safetensors")
        model = make()
        model.load_state_dict(safetensors.torch.load_file(file))
        return model.eval()

    return load


def write_state(model: torch.nn.Module, folder: Path) -> None:
    """The weights, and no more."""
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")


class Plain(torch.nn.Module):
    """A model of nobody's library."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(12, 16)
        self.outer = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 12] to [rows, 5]."""
        return self.outer(torch.tanh(self.inner(x)))


class PlainModel(mlflow.pyfunc.PythonModel):
    """How such a team serves it."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Read the weights."""
        self.model = state_into(Plain)(Path(context.artifacts["weights"]).parent)

    def predict(self, context: object, model_input: np.ndarray) -> np.ndarray:
        """Numbers in, numbers out."""
        with torch.no_grad():
            return self.model(torch.from_numpy(model_input)).numpy()


def log_pyfunc(name: str, model: torch.nn.Module, folder: Path) -> None:
    """By MLflow's pyfunc, with the weights as an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    write_state(model, folder)
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=PlainModel(),
            artifacts={"weights": str(folder / "model.safetensors")},
            registered_model_name=name,
            pip_requirements=["torch"],
        )


def load_pyfunc(folder: Path) -> torch.nn.Module:
    """What the pyfunc has inside."""
    return mlflow.pyfunc.load_model(str(folder)).unwrap_python_model().model


def sentences() -> torch.nn.Module:
    """A small BERT, the mean of its tokens, and a Dense module."""
    from sentence_transformers import models as modules

    folder = Path(tempfile.mkdtemp())
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    words = modules.Transformer(str(folder))
    return sentence_transformers.SentenceTransformer(
        modules=[words, modules.Pooling(16), modules.Dense(16, 6)], device="cpu"
    )


def log_sentences(name: str, model: torch.nn.Module, folder: Path) -> None:
    """By MLflow's own flavor."""
    with mlflow.start_run():
        mlflow.sentence_transformers.log_model(
            model,
            name="model",
            registered_model_name=name,
            pip_requirements=["sentence-transformers"],
        )


def adapted(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """An adapter on the base."""
    model.save_pretrained(folder / "base")
    own = transformers.BertForSequenceClassification.from_pretrained(folder / "base")
    return peft.get_peft_model(own, peft.LoraConfig(**ADAPTER))


def bert() -> torch.nn.Module:
    """A classifier of three classes."""
    config = transformers.BertConfig(**SMALL, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def t5() -> torch.nn.Module:
    """An encoder and a decoder with the same embeddings."""
    config = transformers.T5Config(
        vocab_size=WORDS + 5,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def clip() -> torch.nn.Module:
    """Both towers."""
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    special = {"bos_token_id": 2, "eos_token_id": 4, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=SMALL | special, vision_config=vision, projection_dim=8
    )
    return transformers.CLIPModel(config)


def clip_processor() -> transformers.CLIPImageProcessor:
    """Of images of 16 pixels."""
    size = {"height": 16, "width": 16}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)


def vit() -> torch.nn.Module:
    """A classifier of images."""
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config)


def vit_processor() -> transformers.ViTImageProcessor:
    """Of images of 16 pixels."""
    return transformers.ViTImageProcessor(size={"height": 16, "width": 16})


def next_words(model: torch.nn.Module) -> torch.Tensor:
    """Scores of the next word."""
    return model(**rows()).logits[:, -1]


def classes(model: torch.nn.Module) -> torch.Tensor:
    """Scores of a text's classes."""
    return model(**rows()).logits


def write_t5(model: torch.nn.Module, folder: Path) -> None:
    """As its library saves it."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


KINDS: dict[str, Kind] = {
    "transformers BERT": Kind(
        bert,
        logged_by_transformers("text-classification", tokenizer=tokenizer),
        from_transformers,
        classes,
    ),
    "transformers T5": Kind(
        t5,
        logged_as_folder(write_t5),
        lambda folder: transformers.T5ForConditionalGeneration.from_pretrained(folder).eval(),
        lambda model: model(**rows(), decoder_input_ids=torch.zeros(24, 1).long()).logits[:, 0],
    ),
    "transformers Qwen2, tied": Kind(
        lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True)
        ),
        logged_by_transformers("text-generation", tokenizer=tokenizer),
        from_transformers,
        next_words,
    ),
    "transformers Llama, sharded": Kind(
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
        logged_by_transformers("text-generation", tokenizer=tokenizer),
        from_transformers,
        next_words,
    ),
    "transformers CLIP": Kind(
        clip,
        logged_by_transformers(
            "zero-shot-image-classification", tokenizer=tokenizer, image_processor=clip_processor
        ),
        from_transformers,
        lambda model: model(pixel_values=pixels(16), **rows(PROMPTS)).logits_per_image,
    ),
    "transformers ViT": Kind(
        vit,
        logged_by_transformers("image-classification", image_processor=vit_processor),
        from_transformers,
        lambda model: model(pixels(16)).logits,
    ),
    "sentence-transformers with Dense": Kind(
        sentences,
        log_sentences,
        lambda folder: mlflow.sentence_transformers.load_model(str(folder)).eval(),
        lambda model: model.encode(list(TEXTS), convert_to_tensor=True),
    ),
    "PEFT": Kind(
        bert,
        logged_by_transformers("text-classification", tokenizer=tokenizer),
        from_transformers,
        classes,
        adapted,
    ),
    "torchvision": Kind(
        lambda: torchvision.models.squeezenet1_1(num_classes=5),
        logged_as_folder(write_state),
        state_into(lambda: torchvision.models.squeezenet1_1(num_classes=5)),
        lambda model: model(pixels(32)),
    ),
    "timm": Kind(
        lambda: timm.create_model("test_resnet", num_classes=5),
        logged_as_folder(write_state),
        state_into(lambda: timm.create_model("test_resnet", num_classes=5)),
        lambda model: model(pixels(32)),
    ),
    "generic": Kind(
        Plain,
        log_pyfunc,
        load_pyfunc,
        lambda model: model(torch.linspace(-2, 2, 24 * 12).reshape(24, 12).sin()),
    ),
}
"""By the names of the table in docs/how-to/text-models.md."""


def train(model: torch.nn.Module, answer: Callable[[torch.nn.Module], torch.Tensor]) -> None:
    """Change a model: what can be trained moves by a little, in drawn directions."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                size = 0.3 * (parameter.std() if parameter.numel() > 1 else parameter.abs())
                parameter += torch.randn_like(parameter) * torch.clamp(size.nan_to_num(), min=0.02)


def labels(kind: Kind, model: torch.nn.Module) -> list[int]:
    """What a model says of the fixed inputs."""
    with torch.no_grad():
        return kind.answer(model.eval()).argmax(dim=1).tolist()


def score(folder: str, data: Path) -> dict[str, float]:
    """The evaluator: how often a version gives the labels in a file, loaded by its own library."""
    asked = json.loads(Path(data).read_text())
    kind = KINDS[asked["kind"]]
    found = labels(kind, kind.load(Path(folder)))
    right = sum(one == other for one, other in zip(found, asked["labels"], strict=True))
    return {"accuracy": right / len(found), "n": len(found)}
