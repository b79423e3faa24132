"""The study behind the defaults: real pretrained weights, real images, every method side by side.

```sh
make study                                  # everything; goes on where it was stopped
make study ARGUMENTS='--minutes 30'         # half an hour of it
make study ARGUMENTS='--setting shallow'    # only the smaller model
make study ARGUMENTS='--setting clip …'     # the paper's own setting, with CLIP and its eight tasks
```

The way of the data, a module a step:

    materials    packages from public registries, through their own clients
    archives     what is in them: images and labels
    task_files   Parquet files and the task file that the package reads
    conversion   the pretrained image tower, from ONNX to open_clip
    distilling   a second base of half its depth
    zoo          base, heads, and one fine-tuned source per task and seed, in an MLflow registry
    plan         which recipes are measured, and the rule that chooses between them
    choices      each method's best recipe, and the defaults, from the measurements
    measuring    accuracies, one JSON line each, never measured twice
    flow         all of it in order, from the base to the last measurement
    untuned      the second study: every preset as it is, by `untuned_tables`
    predicting   do the weights say beforehand which task will suffer?
    summary      means with their intervals, by `paired`
    tables, page the tables and pictures of docs/study.md

It is no part of the package's API; it only calls it.
"""
