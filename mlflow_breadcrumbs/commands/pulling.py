"""A version as the folder that its own library loads."""

import click

from mlflow_breadcrumbs.commands import addresses, options, printing
from mlflow_breadcrumbs.support import wording


@click.command("pull")
@click.argument("uri", type=addresses.VERSION)
@click.argument("folder", type=click.Path())
@click.option(
    "--task",
    type=options.TEXT,
    help="With the head that the version carries for this task.  [default: the version as it is]",
)
@click.option("--no-load", is_flag=True, help="Don't load the folder by its own library.")
@options.json_option
def pull_command(uri: str, folder: str, task: str | None, no_load: bool, as_json: bool) -> None:
    """Put a version's model into a folder: weights, configuration, tokenizer, side by side.

    It is what open_clip, `from_pretrained` and vLLM load; the bytes are held against the recorded
    digest, and the folder is loaded once.

    \b
    mlflow-breadcrumbs pull models:/bert-merged@champion bert --task sentiment
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.flavor import pulling

    found = pulling.pull(uri, folder, task=task, load=not no_load, show=terminal.show)
    if as_json:
        printing.print_json(found.to_dict())
        return
    for name in found.files:
        printing.echo(f"  {name}")
    held = "" if found.recorded else ", which nobody recorded"
    printing.echo(f"{found.weights_digest}{held}")
    if found.note:
        printing.echo(f"Not loaded: {found.note}.")
    loaded = f", loaded by {found.loaded}" if found.loaded else ""
    printing.echo(f"{found.uri} is in {folder}: {wording.size(found.nbytes)}{loaded}")
