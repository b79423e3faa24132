"""Run the targets for a while: `python -m fuzz --seconds 600 policy`; all where none is named.

What is found is written to `fuzz/found/<target>-<digest>`, and the exit code is 1. Put it into the
corpus with the fix.
"""

import argparse
import collections
import hashlib
import logging
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, settings

from fuzz import mutations, targets

FOUND = Path(__file__).parent / "found"
ROUND = 100
"""Inputs between two looks at the clock."""


def main() -> int:
    """Run from the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=", ".join(targets.TARGETS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each target; default 10")
    parser.add_argument("--seed", type=int, default=0, help="the first of the rounds'; default 0")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(targets.TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faults = 0
    print(f"{'target':12} {'inputs':>9} {'taken':>7} {'refused':>9} {'faults':>7}  slowest")
    for target in given.targets or targets.TARGETS:
        faults += fuzz(target, given.seconds, given.seed)
    return 1 if faults else 0


def fuzz(target: str, seconds: float, seed: int) -> int:
    """Run one target and print what came of it; how many faults of different places it has."""
    counts: collections.Counter[str] = collections.Counter()
    places: set[str] = set()
    slowest = 0.0
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as space:

        def one(content: bytes) -> None:
            nonlocal slowest
            started = time.monotonic()
            if started > ends:
                return
            counts["inputs"] += 1
            try:
                taken = targets.run(target, content, Path(space) / "x")
                counts["taken" if taken else "refused"] += 1
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                place = (
                    "".join(traceback.format_tb(error.__traceback__)[-1:]) + type(error).__name__
                )
                counts["faults"] += 1
                if place not in places:
                    places.add(place)
                    _keep(target, content, error)
            slowest = max(slowest, time.monotonic() - started)

        given = mutations.damaged(mutations.examples(target))
        while time.monotonic() < ends:
            run = settings(
                max_examples=ROUND,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(hypothesis.given(given)(one))
            hypothesis.seed(seed)(run)()
            seed += 1
    print(
        f"{target:12} {counts['inputs']:9,} {counts['taken']:7,} {counts['refused']:9,} "
        f"{counts['faults']:7,}  {slowest:.2f} s",
        flush=True,
    )
    return len(places)


def _keep(target: str, content: bytes, error: Exception) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{target}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}:{last.lineno}"
    print(f"  {path}: {type(error).__name__}: {str(error)[:100]} ({where})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
