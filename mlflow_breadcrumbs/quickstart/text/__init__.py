"""The quickstart with text models: what `mlflow-breadcrumbs quickstart --kind text` does.

```
corpora      real texts with their classes, out of packages
encoder      a pretrained MiniLM out of another, and heads on it
tuning       fine-tune it for a task
text_tasks   the texts as files, an evaluator and a policy beside them
text_scores  the evaluator's function, which is copied into the quickstart's folder
text_run     register, fine-tune, merge through `mlflow run`, promote, show the result
```

Versions are those of `mlflow.transformers`; nothing here is known to the rest of the package, which
takes these models as it takes any other team's.
"""
