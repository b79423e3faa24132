"""How large the quickstart's zoo is, and how long it is trained."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """The defaults take about four minutes on two processors.

    As in practice, the base is trained long and on much that differs, and the fine-tuning stays
    near it: its rate is a thirtieth of the pretraining's.
    """

    seed: int = 0
    """Of everything that is drawn: images, first weights, order of the training."""
    architecture: str = "test_convnext"
    """timm's name of the image tower; 0.2 M parameters."""
    image_size: int = 32
    """Pixels on a side."""
    embed_dim: int = 64
    """Length of an image's and of a text's features."""
    corpus_images: int = 100
    """Images per word in the pretraining."""
    pretrain_steps: int = 1200
    """Optimizer steps of the pretraining."""
    pretrain_batch: int = 128
    """Images per step of the pretraining."""
    pretrain_rate: float = 3e-3
    """Highest learning rate of the pretraining."""
    task_images: int = 160
    """Images per class of a task, over all splits."""
    finetune_steps: int = 200
    """Optimizer steps of each fine-tuning."""
    finetune_batch: int = 64
    """Images per step of a fine-tuning."""
    finetune_rate: float = 1e-4
    """Highest learning rate of a fine-tuning."""
    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)
    """Scales that are tried on the validation images, for the rows of the table that say tuned."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The quickstart of text models; the defaults take a few minutes on two processors."""

    seed: int = 0
    """Of everything that is drawn: which texts, the order of the training."""
    weights_digest: str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    """SHA-256 of the encoder's file in the package; another file is refused."""
    tokens: int = 32
    """Of a text that the encoder sees; the rest is cut off."""
    train_texts: int = 640
    """Of a task, at most; all classes alike as far as there are enough."""
    validation_texts: int = 100
    """Of a task, at most."""
    test_texts: int = 240
    """Of a task, at most."""
    finetune_steps: int = 40
    """Optimizer steps of each fine-tuning."""
    finetune_batch: int = 16
    """Texts per step of a fine-tuning."""
    finetune_rate: float = 2e-4
    """Highest learning rate of a fine-tuning."""
