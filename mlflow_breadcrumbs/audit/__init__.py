"""Is it still true?

`evidence` gathers what MLflow holds about a version, `verify` judges it, `reproduce` merges it
again, `inventory` lists the merged versions, `signing` signs one, `trail` keeps that it was done;
`export` writes auditors' formats.
"""
