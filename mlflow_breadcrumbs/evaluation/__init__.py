"""How good models are, measured once.

1. `scoring` is the accuracy of a model with a head on images; `frames` takes them from data frames.
2. `meters` measure through `caches`, so that each accuracy is computed once; `bench` measures many
   merged models; `scorecard` holds base, sources and merged model side by side, `shortfalls` say in
   sentences where that went badly; `trial` runs merged weights once before they become a version.
3. `evaluating` is the command: one version, its tasks, a run; `accuracy_records` writes into runs;
   `recorded_tasks` knows the task file of before; `plugin` is the evaluator that MLflow finds by
   its entry point.
"""
