"""`python -m study`: see `--help`, the words of the package, and docs/study.md."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mlflow_breadcrumbs import errors
from study import flow, settings, summary

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "study.md"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m study", description=__doc__.splitlines()[0])
    made.add_argument("--setting", choices=settings.NAMES, default="small")
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
    folder = given.folder or HERE / ("work" if given.setting == "small" else "work-clip")
    seeds = tuple(int(seed) for seed in given.seeds.split(","))
    try:
        done, absent, setting = _run(given, folder, seeds)
    except errors.BreadcrumbsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for task, why in absent.items():
        print(f"left out: the task {task} ({why})", file=sys.stderr)
    page = PAGE if given.setting == "small" else given.results / f"{setting}.md"
    report = summary.write(given.results / setting, page, seeds)
    print(json.dumps({"done": done, "left_out": absent, **report}, indent=2))
    return 3 if done is False else 0


def _run(
    given: argparse.Namespace, folder: Path, seeds: tuple[int, ...]
) -> tuple[bool | None, dict[str, str], str]:
    """Whether all is done (not asked: `None`), what was left out, and the setting's name."""
    absent: dict[str, str] = {}
    if given.tables:
        return None, absent, given.setting
    if given.setting == "small":
        setting, absent = settings.small(folder)
    else:
        setting = settings.clip(given.architecture, given.checkpoint, given.tasks)
    results = given.results / setting.name
    done = flow.run(setting, folder, results, seeds, clock(given.minutes), given.device)
    return done, absent, setting.name


if __name__ == "__main__":
    sys.exit(main())
