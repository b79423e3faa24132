"""Versions without files: what the registry says of them is all that a lineage needs."""

import mlflow

from mlflow_breadcrumbs.registry import records, tag_keys
from mlflow_breadcrumbs.support import canonical


def version(name, *, base=None, sources=(), source="nowhere", **tags):
    """Register a version with the tags that this package would have written; its URI."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    kind = "merge" if sources else "finetune" if base else "import"
    made = {tag_keys.KIND: kind, tag_keys.WEIGHTS_DIGEST: f"sha256:{name}"}
    if base:
        made[tag_keys.BASE] = base
    if sources:
        made[tag_keys.SOURCES] = canonical.dumps(list(sources)).decode()
    found = client.create_model_version(name, source, tags=made | tags)
    return f"models:/{name}/{found.version}"


def logged(name="model"):
    """Log a model that isn't registered; its id."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("test").experiment_id
    model = client.create_logged_model(experiment, name=name)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def chain(length):
    """A base and merges of merges, each of the one before and the one before that; all URIs."""
    base = version("base")
    found = [version("tuned", base=base)]
    for _ in range(length):
        found.append(version("merged", base=base, sources=found[:-3:-1]))
    return [base, *found]


def register(name, run_id):
    """A version without files: what a job would have registered."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    made = client.create_model_version(
        name, "nowhere", run_id, tags={tag_keys.WEIGHTS_DIGEST: "sha256:1"}
    )
    return records.RegisteredVersion(
        name, str(made.version), f"models:/{name}/{made.version}", run_id, "", "sha256:1"
    )
