"""Small BERTs with a tokenizer, as versions that `mlflow.transformers` logs."""

import texts
import transformers


def config(**settings):
    """The configuration of one."""
    known = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 25,
        "num_labels": 3,
    }
    return transformers.BertConfig(**known | settings)


def register(name, model, folder, task="text-classification"):
    """A small BERT, or an adapter on one, with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]
    (folder / "vocab.txt").write_text("\n".join(words))
    texts.log(name, model, transformers.BertTokenizer(str(folder / "vocab.txt")), task)
