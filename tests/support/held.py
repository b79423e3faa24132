"""Shards of which one is held up, so that somebody can kill who is at it; and who merges so.

As a program: `python held.py ADDRESS FOLDER`, a merge of FOLDER by one worker.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import shard_cases

from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.engine.shards import local
from mlflow_breadcrumbs.support import executors

HELD = 3
"""The number of the shard."""


class HeldShards(local.ShardWork):
    """The first worker that comes to the shard writes its number beside the output, and waits."""

    def __reduce__(self):
        return HeldShards, (self.plan, self.backend)

    @contextlib.contextmanager
    def begin(self):
        with super().begin() as do:

            def held(number, advance):
                mark = Path(self.plan.output).with_name("held")
                if number == HELD and not mark.exists():
                    mark.with_suffix(".new").write_text(str(os.getpid()))
                    mark.with_suffix(".new").replace(mark)
                    time.sleep(600)
                return do(number, advance)

            yield held


def pid(folder, alive=lambda: True):
    """The process that waits in a folder, once there is one; `alive` says whether one can come."""
    while not (folder / "held").exists():
        assert alive()
        time.sleep(0.02)
    return int((folder / "held").read_text())


def main(address, folder):
    """Merge what is in the folder; nobody lets it end."""
    local.ShardWork = HeldShards
    paths = sorted(Path(folder).glob("input*.safetensors"))
    inputs = [checkpoints.Checkpoint.open(path) for path in paths]
    with executors.opened("ray", address=address, workers=1) as executor:
        made, output = shard_cases.RECIPES["tensor"], f"{folder}/out.safetensors"
        size = shard_cases.SHARD
        local.merge(*(inputs[0], inputs[1:], made, output), max_shard_size=size, executor=executor)


if __name__ == "__main__":
    main(*sys.argv[1:])
