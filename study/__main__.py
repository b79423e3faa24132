"""`python -m study`: see `--help`, the words of the package, and docs/study.md."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from study import flow, page, settings, untuned, untuned_tables

HERE = Path(__file__).parent
ABOUT = "Fine-tune, merge and measure what docs/study.md shows; goes on where it was stopped."
PRESETS = "presets"
"""The second study, in the setting `small`."""
PAGE = HERE.parent / "docs" / "study.md"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m study", description=ABOUT)
    made.add_argument(
        "--setting",
        choices=(*settings.NAMES, PRESETS),
        action="append",
        help=f"can be repeated; {', '.join((*settings.USUAL, PRESETS))} when not given",
    )
    made.add_argument("--variant", choices=untuned.VARIANTS, action="append", help="of presets")
    made.add_argument("--folder", type=Path, help="for what is fetched and made")
    made.add_argument("--results", type=Path, default=HERE / "results")
    made.add_argument("--seeds", default="0,1,2", help="of fine-tuning, in this order")
    made.add_argument("--minutes", type=float, help="stop in time; the next call goes on")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--tables", action="store_true", help="only write the page's tables anew")
    made.add_argument("--architecture", default="ViT-B-32", help="of the setting clip")
    made.add_argument("--checkpoint", default="openai", help="of the setting clip: tag or file")
    made.add_argument("--tasks", type=Path, default=settings.CLIP_TASKS, help="of the setting clip")
    return made


def clock(minutes: float | None) -> Callable[[], bool]:
    """Say whether there is time left, from now on."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return lambda: end is None or time.monotonic() < end


def main(arguments: list[str] | None = None) -> int:
    """Run the study as far as time goes, and write its tables.

    Returns:
        The exit code: 0 when all is done, 1 on an error, 3 when time was up before.
    """
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    os.environ.setdefault("MLFLOW_DISABLE_AUTO_LOGGING", "true")
    seeds = tuple(int(seed) for seed in given.seeds.split(","))
    on_time = clock(given.minutes)
    every = []
    for name in given.setting or (*settings.USUAL, PRESETS):
        try:
            if name == PRESETS:
                report = _run_presets(given, on_time)
            else:
                report = _run(name, given, seeds, on_time)
        except errors.BreadcrumbsError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        print(json.dumps(report, indent=2))
        every.append(report["done"])
    return 3 if False in every else 0


def _run_presets(given: argparse.Namespace, on_time: Callable[[], bool]) -> dict[str, Any]:
    """Measure the presets as they are, and write their tables."""
    results, done = given.results / PRESETS, None
    if not given.tables:
        folder = given.folder or HERE / "work"
        setting, _ = settings.small(folder)
        done = untuned.run(setting, folder, results, on_time, given.device, given.variant or ())
    made = untuned_tables.make(results)
    PAGE.write_text(page.fill(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    return {"setting": PRESETS, "done": done, "tables": list(made)}


def _run(
    name: str, given: argparse.Namespace, seeds: tuple[int, ...], on_time: Callable[[], bool]
) -> dict[str, Any]:
    """Run one setting and write its page; gives what came of it."""
    done: bool | None = None
    absent: dict[str, str] = {}
    if name == "clip":
        folder = given.folder or HERE / "work-clip"
        setting = settings.clip(given.architecture, given.checkpoint, given.tasks)
        name = setting.name
    else:
        folder = given.folder or HERE / "work"
        if not given.tables:
            setting, absent = settings.PACKAGED[name](folder)
        folder = folder if name == "small" else folder / name
    if not given.tables:
        done = flow.run(setting, folder, given.results / name, seeds, on_time, given.device)
    for task, why in absent.items():
        print(f"left out: the task {task} ({why})", file=sys.stderr)
    usual = name in settings.USUAL
    told = page.write(
        given.results / ("small" if usual else name),
        PAGE if usual else given.results / f"{name}.md",
        seeds,
        given.results / "shallow" if usual else None,
    )
    return {"setting": name, "done": done, "left_out": absent, **told}


if __name__ == "__main__":
    sys.exit(main())
