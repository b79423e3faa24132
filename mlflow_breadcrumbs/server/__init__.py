"""MLflow's server with pages of our own: `mlflow server --app-name breadcrumbs`.

1. `app` adds the pages to MLflow's app, `accounts_app` does so around MLflow's basic-auth.
2. `visibility` is what the one who asks may see; `account_sight` says it of an account.
3. `pages` is the list of the addresses: what each answers, as HTML by `rendering` or as JSON, which
   `openapi` describes.
4. What the pages say is gathered by a module each: `start`, `model_page`, `version_page`,
   `lineage_page`, `alias_page`, `comparison_page`; `past` reads the history for them, `recalled`
   what was recalled in it, `kept_files` the files that the server keeps.

All of it runs inside the server, on its own stores, and only reads.
"""
