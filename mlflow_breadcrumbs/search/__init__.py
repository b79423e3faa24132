"""Which recipe, which sources: many merges, measured.

`workbench` merges in memory and measures, `graded` by a user's evaluator, `pieces` have others do
it too; `sweep` tries the recipes of `grids`, `sweep_runs` logs them; `scaling` counts tasks;
`blame` finds the culprit; `compare` looks at the task vectors before a merge and `advice` puts that
in sentences; `candidates` chooses for `merge --choose`; `study_records` reads and writes their
runs.
"""
