"""All that talks to MLflow's stores: versions, their files and tags, aliases, runs.

1. `versions` resolves a URI once and opens a version's files through `artifacts`, or leaves the
   weights where they are (`remote_weights`, `hub_weights`); `layouts` know which files those are,
   per flavor; `uris` reads `models:/…`, `tag_keys` names our tags, `records` are what is handed on.
2. `registering` makes a version, `aliases` says where an alias points; only the ledger moves one.
3. `runs` opens and ends a run, `projects` knows the one of `mlflow run`, `run_files` reads and
   writes what is in a run, `task_files` finds a task file there or here; `pages` are what people
   read of runs and versions in MLflow.
4. `catalog` reads the whole registry as a `graph` of who was made from whom; `notices` are the
   recalls that it knows of; `server_app` asks the registry's server where it has our app.
5. `failures` says what an error of MLflow means; `reaching` and `permissions` ask before a job
   begins, `accounts` who somebody is to the server; `database` knows MLflow's own database.
"""
