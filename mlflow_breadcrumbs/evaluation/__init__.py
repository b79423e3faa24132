"""How good models are, measured once.

1. `scoring` is the accuracy of a model with a head on images; `frames` takes them from data frames.
2. `meters` measure through `caches`, so that each accuracy is computed once; `bench` measures many
   merged models; `scorecard` holds base, sources and merged model side by side, `shortfalls` say in
   sentences where that went badly; `trial` runs merged weights once before they become a version.
3. `examiners` is the seam between the two: whoever measures a base, its sources and a merged model.
   Images are one way; the user's own evaluator is another: `evaluator_files` reads what was named,
   `evaluators` calls a function or a program, `mlflow_means` MLflow's evaluation, `grading` holds
   what they say against limits. `scores` are what each gives.
4. `evaluating` is the command: one version, its tasks, a run; `graded_versions` the same by an
   evaluator; `accuracy_records` writes into runs; `recorded_tasks` knows the task file of before;
   `plugin` is the evaluator that MLflow finds by its entry point.
"""
