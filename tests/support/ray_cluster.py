"""A real Ray cluster of the tests' own.

As a program it prints its address, and lives until its input ends.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

WORKERS = 5
"""That one test may have at once; there is room for one more, of another driver."""
STORE = 100_000_000
"""Bytes of the object store."""


VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""With these, who started the cluster may join it, and nobody else."""


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The cluster's address; its workers can import what is beside this file."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait()


def main() -> None:
    """Start it, and wait."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        context = ray.init(
            address="local",
            num_cpus=WORKERS + 1,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=STORE,
            logging_level="ERROR",
            log_to_driver=False,
            _temp_dir=folder,
        )
        sys.stdout.write(f"{context.address_info['gcs_address']}\n")
        sys.stdout.flush()
        sys.stdin.read()
        ray.shutdown()


if __name__ == "__main__":
    main()
