"""Model Breadcrumbs inside MLflow: many fine-tuned versions in, one merged version out.

The way of the data:

    registry → checkpoints → masks → merge → flavor → evaluate → register → lineage → audit
                     ↘ compare                                              ↘ report

1. `registry` resolves URIs to versions, once, and opens their files; `inputs` checks them.
2. `recipe` says what to compute; `masks` has its one rounding rule; `checkpoints` reads tensors
   lazily; `backends` compute; `merge` streams base and sources into one output through `writing`;
   `agreement` says when two results of one merge are the same.
3. `architecture`, `tasks`, `heads` and `evaluate` know models and images; `scorecard` compares the
   base, the sources and the merged model on every task.
4. `flavor` saves and loads versions; `statement` writes `lineage.json`; `jobs` opens and ends the
   run, `logbook` fills it; `registration` makes the version; `recovery` takes up a stopped merge.
5. `pipeline` is the main flow on one page; `importer` and `finetune` make the versions it takes;
   `cli` is all of it on the command line.
6. `compare` looks at the task vectors before a merge (`backends.geometry` measures, `advice` puts
   it in sentences); `report` gathers all that is known after it and `page` writes it as HTML;
   `pictures` draws, `meter` and `cache` measure each accuracy once.
7. `study` merges in memory and measures on a `bench`, again and again: `sweep` tries the recipes of
   `grids`, `scaling` counts tasks, `blame` finds the culprit; `charts` draws.
8. `catalog` reads the registry as a `graph`; `ledger` keeps that graph in SQL, and the history of
   what was done; `lineage` asks either for ancestors and descendants, `drawing` draws them,
   `difference` holds two versions side by side.
9. `evidence` gathers what MLflow holds about a version, `verify` judges it, `reproduce` merges it
   again, `attest` writes it in auditors' formats and signs it; `trail` keeps that it was done.
10. `ledger` also knows where every alias was and when: it looks at the registry, or `receiver` is
    told by MLflow's webhooks (`subscription` registers it there, `webhooks` checks signatures) and
    it tells others by its own; `timeline` draws the moves.

```python
from mlflow_breadcrumbs import pipeline, recipe

result = pipeline.merge(
    pipeline.MergeRequest(
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
