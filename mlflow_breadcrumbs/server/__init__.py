"""MLflow's server with our pages and a guard of aliases: `mlflow server --app-name breadcrumbs`.

1. `app` adds the pages to MLflow's app, `accounts_app` does so around MLflow's basic-auth.
2. `pinning` reads which aliases are guarded, and by which policies; `in_force` is what the workers
   have of it; `guard` refuses what would move the aliases past that. `deciding` takes promotions,
   rollbacks and approvals as requests (`asking`); `callers` is who asks.
3. `noticing` tells the ledger of aliases that MLflow's own calls move, `witnessing` who registers
   versions; `errands` writes that down, looks for what others move, and delivers events.
4. `visibility` is what the one who asks may see; `account_sight` says it of an account.
5. `pages` is the list of the addresses: what each answers, as HTML by `rendering` or as JSON, which
   `openapi` describes.
6. What the pages say is gathered by a module each: `start`, `model_page`, `version_page`,
   `lineage_page`, `alias_page`, `comparison_page`; `past` reads the history for them, `recalled`
   what was recalled in it, `kept_files` the files that the server keeps.

All of it runs inside the server, on its own stores. The pages only read; `static/recall.js` sends
the request for a recall, `static/lineage.js` draws the table of a lineage as a graph.
"""
