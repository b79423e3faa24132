"""Options of commands that can have their work done by workers elsewhere."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from mlflow_breadcrumbs.commands import options

if TYPE_CHECKING:
    from mlflow_breadcrumbs.support import executors

EXECUTORS = ("local", "ray")
"""`executors.NAMES`, without importing more for a help text."""


def executor_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say who does the work; `opened` reads them."""
    return options.with_options(
        command,
        click.option(
            "--executor",
            "executor_name",
            type=options.choice(*EXECUTORS),
            default="local",
            show_default=True,
            help="Who does it: this process, or workers on a Ray cluster (extra ray).",
        ),
        click.option(
            "--workers",
            type=options.WHOLE,
            help="Ray's, at once, each of --threads processors, or of one.  [default: as many as "
            "there is room for]",
        ),
        click.option(
            "--ray-address",
            type=options.TEXT,
            metavar="HOST:PORT",
            envvar="RAY_ADDRESS",
            show_envvar=True,
            help="Cluster to join.  [default: one is started here]",
        ),
    )


def threads_of(executor_name: str | None, threads: int | None) -> int | None:
    """The threads of whoever works; a worker of Ray has one where nobody says more."""
    return 1 if executor_name == "ray" and threads is None else threads


@contextlib.contextmanager
def opened(
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    threads: int | None,
    device: str,
) -> Iterator["executors.Executor | None"]:
    """The executor that was asked for; `None` for this process.

    Args:
        executor_name: one of `EXECUTORS`, or nothing.
        workers: at once.
        ray_address: of a cluster.
        threads: of each worker.
        device: of each worker; one on CUDA gets a GPU of its own, as `cuda`.
    """
    if executor_name != "ray":
        if workers is not None:
            raise click.UsageError("--workers needs --executor ray")
        yield None
        return
    if device.startswith("cuda:"):
        raise click.UsageError(
            f"--device is {device!r}, and Ray gives each worker a GPU; write --device cuda"
        )
    from mlflow_breadcrumbs.support import executors

    with executors.opened(
        "ray",
        address=ray_address,
        workers=workers,
        threads=threads or 1,
        gpus=int(device == "cuda"),
    ) as executor:
        yield executor


@contextlib.contextmanager
def of_models(
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    threads: int | None,
    device: str,
) -> Iterator["executors.Executor"]:
    """The same for commands that run models, where `auto` means a GPU if one is here."""
    from mlflow_breadcrumbs.support import devices, executors

    if executor_name == "ray" and device == "auto":
        device = devices.choose_device(device)
    with opened(executor_name, workers, ray_address, threads, device) as executor:
        yield executors.LOCAL if executor is None else executor
