"""Making fine-tuned versions.

`importing` registers a checkpoint, whose tensors `state_dicts` reads and names; `finetuning` trains
a registered base on a task and registers the result, `training` does the training, of all weights
or, by `low_rank`, of changes of a low rank.
"""
