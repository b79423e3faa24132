"""One damaged version is reported and left out; what is asked about the others is answered."""

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import catalog

DAMAGED = {
    "nesting": "[" * 3_000,
    "nesting that parses": "[" * 300 + "]" * 300,
    "a lone surrogate": r'["models:/tiny/1", "\ud800"]',
    "a NUL": r'["models:/tiny/1", "\u0000"]',
    "digits": "9" * 4_900,
    "an object": '{"a": 1}',
    "numbers": "[1, 2]",
    "cut off": '["models:/tiny/1',
    "NaN": "[NaN]",
}


def run(*arguments):
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_sources_stop_nobody(family, caplog, case):
    client = mlflow.MlflowClient()
    client.create_registered_model("damaged")
    source = client.get_model_version("tiny-colours", "1").source
    client.create_model_version("damaged", source, tags={"breadcrumbs.sources": DAMAGED[case]})
    for _ in range(2):  # the second reads what the first has indexed
        impact = run("impact", family.sources[0])
        assert impact.exit_code == 0, impact.output
        assert family.merged in impact.output
        synced = run("ledger", "sync")
        assert synced.exit_code == 0, synced.output
    assert "models:/damaged/1: the tag breadcrumbs.sources is damaged" in caplog.text
    for command in (("lineage", "models:/damaged/1"), ("history", "damaged"), ("watch", "--once")):
        done = run(*command)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


@pytest.mark.parametrize(
    "value",
    ["models:/tiny/" + "9" * 400, "models:/tiny/99999999999999999999", "models:/m-", "\u0661",
     "x" * 4_000, "models:/tiny/\u0661", "models:/damaged/1", "models:/../1", "runs:/x"],
)  # fmt: skip
def test_a_base_that_is_none_stops_nobody(family, value):
    client = mlflow.MlflowClient()
    client.create_registered_model("damaged")
    source = client.get_model_version("tiny-colours", "1").source
    tags = {"breadcrumbs.base": value, "breadcrumbs.sources": f'["{value}"]'}
    client.create_model_version("damaged", source, tags=tags)
    for command in (
        ("impact", family.sources[0]),
        ("ledger", "sync"),
        ("lineage", "models:/damaged/1"),
    ):
        done = run(*command)
        assert done.exit_code == 0, (done.output, done.exception)
    assert catalog.everything().versions
