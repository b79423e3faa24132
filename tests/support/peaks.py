"""How far the memory of a process rises above what it had: run in a fork of its own."""

import json
import resource
from pathlib import Path

import bombs


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(given: dict) -> None:
    """Do something small, then something large of the same kind; print how much more that took."""
    small, large = {"request": _request, "parquet": _parquet}[given.pop("what")](**given)
    small()
    before = peak()
    large()
    print(json.dumps({"more": peak() - before}))  # noqa: T201


def _request(folder: str):
    import pandas as pd
    import tiny
    import torch

    from mlflow_breadcrumbs.flavor import serving
    from mlflow_breadcrumbs.models import task_heads

    config = tiny.config(Path(folder))
    head = task_heads.Head("t", ("a", "b"), ("{}",), "file", torch.ones(2, 12))
    model = serving.OpenClipModel(config, tiny.model(config).eval(), {"t": head}, "cpu", "tiny")
    pyfunc = serving.Pyfunc(model, 4)
    images = [bombs.png(4000, 3000)] * 12
    return (
        lambda: pyfunc.predict(pd.DataFrame({"image": images[:1]})),
        lambda: pyfunc.predict(pd.DataFrame({"image": images})),
    )


def _parquet(few: str, many: str):
    from mlflow_breadcrumbs.models import readers

    def read(path: str) -> None:
        for example in readers.read_parquet([Path(path)]).examples:
            assert len(example.read()) == 1 << 20

    return lambda: read(few), lambda: read(many)
