"""The steps that made the ledger's tables what they are, as Alembic's revisions.

`migrations` runs them. A revision that was released is never edited; a change is a new file, with
the next number, which `migrations.REVISIONS` names too.
"""
