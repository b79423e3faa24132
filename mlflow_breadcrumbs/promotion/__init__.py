"""A version gets an alias only on evidence, and loses it quickly.

1. `policies` reads what is asked for, from YAML, with the types of `fields`; `facts` are the
   records of what is known.
2. `gates` holds the one against the other: a verdict (`verdicts`), with a sentence per rule
   (`holding`); `choosing` says which measurement counts for a task,
   `thresholds` are the rules about metrics, `numbers` what they may name, `windows` are the rules
   about the time.
3. `gathering` reads the facts from MLflow and the ledger, `witnesses` says which measurements
   count; `measuring` measures what is lacking.
4. `promote` is the flow: facts, verdict, decision, and the alias moved by compare-and-set;
   `decisions` keeps what was judged in its run.
5. `approvals` are people's words for weights, `recalls` those against them; `rollback` goes back to
   what `predecessors` names; `recheck` judges a live version anew, `drift` is how far it has moved
   since.
6. `guards` asks the registry's server whether it guards an alias: then all of this is done there;
   `overriding` is for emergencies.

```python
from mlflow_breadcrumbs.promotion import policies, promote, rollback

rules = policies.load("policy.yaml")
decision = promote.promote(promote.PromotionRequest("models:/clip-merged/2", "champion", rules))
decision.result, decision.sentence, decision.verdict.objections
rollback.rollback("clip-merged", "champion")
```
"""
