"""Making fine-tuned versions.

`importing` registers a checkpoint; `finetuning` trains a registered base on a task and registers
the result, `training` does the training.
"""
