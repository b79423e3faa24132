"""Small graphs of versions."""

from hypothesis import strategies as st

from mlflow_breadcrumbs.registry import graph


def version(uri, **changes):
    fields = {
        "name": "m",
        "number": 1,
        "kind": "merge",
        "tasks": (),
        "weights_digest": None,
        "recipe_digest": None,
        "model_id": None,
        "run_id": None,
        "created": 0,
        "updated": 0,
    }
    return graph.Version(uri=uri, **(fields | changes))


PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20, unique=True)


def made(pairs):
    versions = [version(str(number)) for number in range(8)]
    return graph.Graph(
        versions, [graph.Edge(str(a), str(b), "source", i) for i, (a, b) in enumerate(pairs)]
    )
