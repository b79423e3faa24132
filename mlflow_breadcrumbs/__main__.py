"""`python -m mlflow_breadcrumbs` is the command line."""

from mlflow_breadcrumbs.cli import main

main(prog_name="mlflow-breadcrumbs")
