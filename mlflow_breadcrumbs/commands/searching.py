"""Which recipe, which sources, and who is to blame: many merges, measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import (
    addresses,
    evaluator_choice,
    experiments,
    options,
    printing,
    spreading,
    task_choice,
)
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.search import grids
from mlflow_breadcrumbs.support import defaults, wording

if TYPE_CHECKING:
    from mlflow_breadcrumbs.search import workbench

AXES = (*grids.NUMBERS, *grids.WORDS)


def _axis_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option per field of the recipe that can be swept."""
    for field in reversed(AXES):
        command = click.option(
            f"--{field}",
            type=options.TEXT,
            metavar="VALUES",
            help=f"Values of {field}: as 0.1,0.2 or 0.3:1.5:0.3."
            if field in grids.NUMBERS
            else f"Values of {field}, separated by commas.",
        )(command)
    return command


def _material_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where images are and how models run; `_materials` reads them."""
    return options.with_options(
        command,
        task_choice.option("Task file with images.  [default: the base's]"),
        evaluator_choice.option,
        options.device_option,
        options.batch_size_option,
        options.threads_option,
        click.option(
            "--max-norm-ratio",
            type=options.NUMBER,
            default=defaults.MAX_NORM_RATIO,
            show_default=True,
            help="Refuse a source farther from the base than so many times its norm.",
        ),
    )


def _materials(
    base: str, sources: Sequence[addresses.Weighted], given: dict[str, Any]
) -> "workbench.Materials":
    from mlflow_breadcrumbs.search import workbench

    own = evaluator_choice.chosen(given["evaluator"], given["tasks"])
    return workbench.Materials(
        base=base,
        sources=tuple(uri for uri, _ in sources),
        tasks=None if own else task_choice.needed(given["tasks"], base),
        evaluator=own,
        device=given["device"],
        batch_size=given["batch_size"],
        threads=given["threads"],
        max_norm_ratio=given["max_norm_ratio"],
    )


def _recipes(
    sources: Sequence[addresses.Weighted],
    recipe_file: str | None,
    grid_file: str | None,
    draws: int | None,
    seed: int,
    given: dict[str, Any],
) -> tuple[recipe.MergeRecipe, ...]:
    """The recipes of a sweep; the command line's values replace those of the grid file."""
    axes = grids.load(grid_file) if grid_file else {}
    axes |= {field: grids.parse(field, given[field]) for field in AXES if given[field] is not None}
    if not axes:
        axes = {field: grids.parse(field, values) for field, values in grids.DEFAULT.items()}
    fixed: dict[str, Any] = {}
    if any(weight is not None for _, weight in sources):
        fixed["weights"] = [1.0 if weight is None else weight for _, weight in sources]

    def make(point: grids.Point) -> recipe.MergeRecipe:
        fields = fixed | dict(point)
        method = fields.pop("method", None)
        return recipe.make(sources=len(sources), method=method, file=recipe_file, overrides=fields)

    if draws is not None:
        return grids.draws(grids.Grid(axes), draws, seed, make)
    return grids.recipes(grids.Grid(axes).points(), make)


@click.command("sweep")
@addresses.sources_options
@_material_options
@_axis_options
@click.option("--recipe", "recipe_file", type=options.TEXT, help="Recipe file for other fields.")
@click.option(
    "--grid", "grid_file", type=options.TEXT, metavar="FILE", help="YAML: values per field."
)
@click.option(
    "--random",
    "draws",
    type=options.WHOLE,
    metavar="N",
    help="Draw N recipes instead of trying all; a field may then be 0.05..0.3.",
)
@options.seed_option("Of the draws.")
@click.option(
    "--halving",
    type=options.WHOLE,
    metavar="IMAGES",
    help="Begin with so many images per task; keep the better half, double the images, repeat.",
)
@click.option(
    "--robustness/--no-robustness",
    default=True,
    show_default=True,
    help="Measure the chosen recipe with each hyperparameter 50 % off.",
)
@click.option("--output", type=options.TEXT, metavar="FILE", help="Write the best recipe here too.")
@click.option(
    "--registered-model", type=options.TEXT, metavar="NAME", help="Register the best merge here."
)
@click.option("--alias", type=options.TEXT, help="Point this alias at the registered version.")
@options.force_alias_option
@spreading.executor_options
@experiments.experiment_option
@options.json_option
def sweep_command(
    base: str,
    sources: tuple[addresses.Weighted, ...],
    source_list: list[addresses.Weighted] | None,
    recipe_file: str | None,
    grid_file: str | None,
    draws: int | None,
    seed: int,
    halving: int | None,
    robustness: bool,
    output: str | None,
    registered_model: str | None,
    alias: str | None,
    force_alias: bool,
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Try many recipes and choose the best on the validation images.

    Without values for any field, 60 recipes around the published ones are tried. A sweep that was
    stopped goes on where it was when the same command is given again.

    \b
    mlflow-breadcrumbs sweep --base models:/clip/1 \\
        --sources models:/clip-cars/1,models:/clip-signs/1 --tasks tasks.yaml \\
        --density 0.1,0.14,0.2 --alpha 0.3:1.5:0.3 --registered-model clip-merged
    """
    everything = addresses.all_sources(sources, source_list)
    if alias is not None and registered_model is None:
        raise click.UsageError("--alias needs --registered-model")
    tried = _recipes(everything, recipe_file, grid_file, draws, seed, given)
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.search import sweep

    request = sweep.SweepRequest(
        materials=_materials(base, everything, given),
        recipes=tried,
        halving=halving,
        robustness=robustness,
        registered_model=registered_model,
        alias=alias,
        force_alias=force_alias,
    )
    spread = (executor_name, workers, ray_address, given["threads"])
    with spreading.of_models(*spread, given["device"]) as executor:
        result = sweep.sweep(request, terminal.show, executor)
    if output is not None:
        Path(output).write_text(result.recipe_file(), encoding="utf-8")
    if as_json:
        printing.print_json(result.to_dict())
        return
    terminal.print_table(result.best(10), SWEEP_COLUMNS)
    printing.echo(
        f"{wording.counted(len(result.trials), 'recipes')}, {result.measured_now} of them "
        f"measured now. Of the best, average normalized accuracy "
        f"{result.validation['average_normalized_accuracy']:.3f} in validation, "
        f"{result.test['average_normalized_accuracy']:.3f} in the test."
    )
    printing.echo(f"run {result.run_id}: pictures and {sweep.RECIPE_FILE} under sweep/")
    printing.print_notes(result.notes)
    if result.version is not None:
        pointed = f", alias {result.alias}" if result.alias else ""
        printing.echo(f"{result.version.uri} registered{pointed}")


SWEEP_COLUMNS = {
    "density": "density",
    "gamma": "gamma",
    "alpha": "alpha",
    "unit": "unit",
    "consensus": "consensus",
    "combine": "combine",
    "calibrate": "calibrate",
    "images": "images",
    "average_normalized_accuracy": "normalized",
    "average_accuracy": "accuracy",
}


@click.command("scaling")
@addresses.sources_options
@_material_options
@click.option(
    "--methods",
    type=options.TEXT,
    metavar="NAME,NAME",
    help="Presets.  [default: weight_average,task_arithmetic,ties,breadcrumbs]",
)
@click.option(
    "--alpha",
    type=options.TEXT,
    metavar="VALUES",
    help="To choose from.  [default: 0.2,0.3,0.5,0.75,1,1.5]",
)
@click.option(
    "--subsets",
    type=options.WHOLE,
    default=defaults.SUBSETS,
    show_default=True,
    help="Of the sources at each number, drawn where there are more.",
)
@click.option(
    "--smallest",
    type=options.WHOLE,
    default=defaults.SMALLEST,
    show_default=True,
    help="Number of sources to begin with, and to choose the carried alpha at.",
)
@click.option("--images", type=options.WHOLE, help="Per task and split at most.  [default: all]")
@options.seed_option("Of the drawn subsets.")
@spreading.executor_options
@experiments.experiment_option
@options.json_option
def scaling_command(
    base: str,
    sources: tuple[addresses.Weighted, ...],
    source_list: list[addresses.Weighted] | None,
    methods: str | None,
    alpha: str | None,
    subsets: int,
    smallest: int,
    images: int | None,
    seed: int,
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure how merging holds up from two sources to all of them, for several methods.

    Once with alpha chosen at every number of sources, once with alpha chosen at the smallest
    number and carried on.

    \b
    mlflow-breadcrumbs scaling --base models:/clip/1 --tasks tasks.yaml \\
        --sources models:/clip-cars/1,models:/clip-signs/1,models:/clip-birds/1
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.search import scaling

    everything = addresses.all_sources(sources, source_list)
    if any(weight is not None for _, weight in everything):
        raise click.UsageError("scaling merges subsets of the sources, each with the weight 1")
    names = methods.split(",") if methods else scaling.METHODS
    alphas = grids.Grid({"alpha": grids.parse("alpha", alpha)}).points() if alpha else ()
    request = scaling.ScalingRequest(
        materials=_materials(base, everything, given),
        methods=tuple(name.strip() for name in names),
        alphas=tuple(point["alpha"] for point in alphas) or scaling.ALPHAS,
        subsets=subsets,
        smallest=smallest,
        images=images,
        seed=seed,
    )
    spread = (executor_name, workers, ray_address, given["threads"])
    with spreading.of_models(*spread, given["device"]) as executor:
        result = scaling.scaling(request, terminal.show, executor)
    if as_json:
        printing.print_json(result.to_dict())
        return
    terminal.print_table(
        result.rows,
        {
            "method": "method",
            "protocol": "alpha",
            "alpha": "chosen",
            "sources": "sources",
            "subsets": "subsets",
            "average_normalized_accuracy": "normalized",
            "lowest": "lowest",
            "highest": "highest",
        },
    )
    printing.echo(f"run {result.run_id}: scaling/scaling.png")


@click.command("blame")
@click.argument("uri", type=addresses.VERSION)
@click.option("--task", required=True, metavar="NAME", help="The task that lost accuracy.")
@task_choice.option("Task file with its images.  [default: the version's, or its base's]")
@evaluator_choice.option
@options.split_option
@click.option(
    "--images",
    type=options.WHOLE,
    default=defaults.BLAME_IMAGES,
    show_default=True,
    help="Of the first look at every source and layer group.",
)
@click.option(
    "--finalists",
    type=options.COUNT,
    default=defaults.FINALISTS,
    show_default=True,
    help="Sources, and layer groups, that are measured again on all images.",
)
@options.device_option
@options.batch_size_option
@options.threads_option
@options.json_option
def blame_command(
    uri: str,
    task: str,
    tasks: str | None,
    evaluator: str | None,
    split: Any,
    images: int | None,
    finalists: int,
    device: str,
    batch_size: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find out which source and which layers cost a task its accuracy in a merged version.

    \b
    mlflow-breadcrumbs blame models:/clip-merged@candidate --task cars --tasks tasks.yaml
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.search import blame

    own = evaluator_choice.chosen(evaluator, tasks)
    found = blame.blame(
        blame.BlameRequest(
            uri=uri,
            task=task,
            tasks=None if own else task_choice.needed(tasks, uri),
            evaluator=own,
            split=split,
            images=images,
            finalists=finalists,
            device=device,
            batch_size=batch_size,
            threads=threads,
        ),
        terminal.show,
    )
    if as_json:
        printing.print_json(found.to_dict())
        return
    terminal.print_table(
        found.rows(),
        {
            "kind": "left out",
            "left_out": "name",
            "images": "images",
            "accuracy": "accuracy",
            "gain": "gain",
            "clear": "clear",
        },
    )
    printing.echo(found.sentence)
    printing.echo(f"run {found.run_id}: blame/{task}.png")
