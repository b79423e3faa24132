"""Before a merge: the sources' changes, side by side."""

from typing import Any

import click

from mlflow_breadcrumbs.commands import addresses, experiments, options, printing
from mlflow_breadcrumbs.support import defaults


@click.command("compare")
@addresses.sources_options
@options.recipe_options
@click.option("--threads", type=options.WHOLE, help="That read and compute.  [default: all]")
@click.option(
    "--max-norm-ratio",
    type=options.NUMBER,
    default=defaults.MAX_NORM_RATIO,
    show_default=True,
    help="What `merge` would be told: task vector over base.",
)
@click.option("--output", type=options.TEXT, metavar="FILE.png", help="Write the heat map there.")
@click.option("--log", is_flag=True, help="Log table, heat map and findings to a run.")
@experiments.experiment_option
@options.json_option
def compare_command(
    base: str,
    sources: tuple[addresses.Weighted, ...],
    source_list: list[addresses.Weighted] | None,
    threads: int | None,
    max_norm_ratio: float,
    output: str | None,
    log: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Hold the changes of versions side by side before a merge.

    Norms, cosines, sign conflicts and mask overlaps of the task vectors; what merge would refuse,
    and what is known to help. How well a task will fare the weights don't tell: evaluate.

    \b
    mlflow-breadcrumbs compare --base models:/clip/1 --source models:/clip-cars/1 \\
        --source models:/clip-signs/1 --output compare.png
    """
    everything = addresses.all_sources(sources, source_list)
    settings = options.make_recipe(everything, given)
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.search import compare, study_records
    from mlflow_breadcrumbs.support import outputs

    if output:
        outputs.check_output(output, ".png")
    found = compare.compare(
        base,
        [uri for uri, _ in everything],
        settings,
        named=options.named_patterns(given),
        threads=threads,
        max_norm_ratio=max_norm_ratio,
        show=terminal.show,
    )
    if output:
        outputs.write(output, found.picture())
    run_id = study_records.record_comparison(found) if log else None
    if as_json:
        printing.print_json(found.to_dict() | ({"run_id": run_id} if run_id else {}))
        return
    terminal.print_table(found.rows(), COLUMNS)
    for finding in found.findings:
        printing.echo(f"- {finding.advice}")
    if output:
        printing.echo(f"{output}: the heat map")
    if run_id:
        printing.echo(f"logged to the run {run_id}")


COLUMNS = {
    "source": "source",
    "norm": "‖task vector‖",
    "relative_norm": "/ ‖base‖",
    "energy_kept": "energy kept",
    "nearest": "most alike",
    "cosine": "cosine",
    "sign_conflict": "sign conflict",
    "overlap": "mask overlap",
}
