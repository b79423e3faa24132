"""Is it still true?

`evidence` gathers what MLflow holds about a version, `verify` judges it, `reproduce` merges it
again, `signing` signs it, `trail` keeps that it was done; `export` writes auditors' formats.
"""
