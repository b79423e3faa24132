"""A version gets an alias only on evidence, and loses it quickly.

1. `policy` reads what is asked for, from YAML; `facts` are the records of what is known.
2. `gates` holds the one against the other: a verdict (`verdicts`), with a sentence per rule.
3. `gathering` reads the facts from MLflow and the ledger; `contents` reads the bytes.
4. `promote` is the flow: facts, verdict, decision, and the alias moved by compare-and-set;
   `decisions` keeps what was judged in its run.
5. `approvals` are people's words for weights; `rollback` goes back to what `standing` names.

```python
from mlflow_breadcrumbs.promotion import policy, promote, rollback

rules = policy.load("policy.yaml")
decision = promote.promote(promote.PromotionRequest("models:/clip-merged/2", "champion", rules))
decision.result, decision.sentence, decision.verdict.objections
rollback.rollback("clip-merged", "champion")
```
"""
