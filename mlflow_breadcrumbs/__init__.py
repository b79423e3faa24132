"""Model Breadcrumbs inside MLflow: many fine-tuned versions in, one merged version out.

The way of the data:

    registry → engine → flavor → evaluation → registry → ledger → promotion → audit

Each room does one step and imports only rooms below it, in this order from the top:

    cli → commands → server → report · quickstart → search → pipeline · promotion · sources
        → audit · evaluation → lineage · webhooks · figures → ledger · flavor
        → registry → engine · models → support · errors

Begin with `pipeline.flow`: the main flow on one page. What it calls:

- `registry` resolves URIs to versions, once, and opens their files; it registers the result.
- `engine` merges files into a file, with the recipe's formula; it knows no MLflow.
- `models` are open_clip models, tasks and images; `evaluation` measures accuracy, once.
- `flavor` saves and loads versions; `lineage` writes and reads what is in one.
- `ledger` is the history that MLflow does not keep, in SQL.

Around it: `sources` makes the fine-tuned versions, `search` looks for the recipe, `promotion` moves
aliases past gates, `audit` asks whether it is still true, `report` shows it on one page, `server`
on pages of MLflow's server, `webhooks` tell and are told, `figures` draw, `quickstart` is
the demo, `commands` are the command line. Every room's docstring says what is in it and where to
begin.

```python
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow

result = flow.merge(
    flow.MergeRequest(
        base="models:/clip/1",
        sources=("models:/clip-cars/1", "models:/clip-signs/1"),
        registered_model="clip-merged",
        recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=2),
        tasks="tasks.yaml",
    )
)
print(result.version.uri, result.metrics["average_normalized_accuracy"])
```
"""

__version__ = "0.1.0"
