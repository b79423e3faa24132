"""Every command with something that it can be given, in an order in which they can be called."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import zoos

ELSEWHERE = {"quickstart"}
"""Has a store of its own, and tests of its own."""

REFUSED = {"rollback", "approve"}
"""Where there is nothing earlier, and of those who made it: exit codes 3 and 1."""


def leaves(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """The commands that do something, by what is typed."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield " ".join(path), command


def calls(zoo: zoos.Zoo, policy: Path, url: str, name: str) -> Mapping[str, tuple[Any, ...]]:
    """What each command is given; merges go to a registered model of that name.

    Args:
        zoo: the versions.
        policy: what `promote` is given.
        url: of a receiver of events.
        name: of the registered model.
    """
    sources = ("--base", zoo.base, "--sources", ",".join(zoo.sources[:2]))
    tasks, made = ("--tasks", zoo.tasks), f"models:/{name}/1"
    base, one = (zoo.folder / f"{name}.safetensors" for name in ("base", "colours"))
    return {
        "import": (one, "--architecture", zoo.architecture, "--registered-model", f"in-{name}"),
        "finetune": (
            *("--base", zoo.base, *tasks, "--task", "colours", "--steps", 1),
            *("--registered-model", f"tuned-{name}"),
        ),
        "compare": sources,
        "merge": (*sources, *tasks, "--registered-model", name, "--alias", "candidate"),
        "merge-files": ("--base", base, "--source", one, "--output", "out.safetensors"),
        "plan": ("--base", base, "--source", one, "--output", "shards.safetensors"),
        "work": ("shards.safetensors.plan.json", "--missing"),
        "finish": ("shards.safetensors.plan.json",),
        "evaluate": (made, *tasks),
        "sweep": (*sources, *tasks, "--alpha", "0.5", "--no-robustness"),
        "scaling": (*sources, *tasks, "--methods", "breadcrumbs", "--smallest", "1"),
        "blame": (made, "--task", "colours", *tasks, "--finalists", 0),
        "promote": (name, "--version", 1, "--alias", "live", "--policy", policy),
        "recheck": (f"{name}@live", *tasks),
        "rollback": (name, "--alias", "live"),
        "approve": (name, "--version", 1),
        "recall": (made, "--reason", "trained on test images"),
        "list": (name,),
        "lineage": (made,),
        "impact": (zoo.base,),
        "diff": (made, made),
        "verify": (made,),
        "reproduce": (made,),
        "export": (made, "--format", "slsa"),
        "report": (made,),
        "pull": (made, "pulled"),
        "ledger sync": (),
        "ledger head": (),
        "ledger verify": (),
        "history": (name,),
        "watch": ("--once", name),
        "hooks register": ("--url", url, "--no-test"),
        "hooks deliver": ("--notify-url", url),
    }
