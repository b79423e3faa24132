"""What a version was made from, and what was made from it: from MLflow and from the ledger."""

import mlflow
import pytest
import registered

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.lineage import relatives

WAYS = ["mlflow", "ledger"]


def shape(node):
    return (node.uri, node.role, node.kind, [shape(parent) for parent in node.parents])


def depth(node):
    return 1 + max((depth(parent) for parent in node.parents), default=0)


@pytest.fixture(params=WAYS)
def where(request, store):
    """Where to ask; the ledger is synced when it is asked."""
    return request.param


def tree(uri, where):
    if where == "ledger":
        ledger.sync(full=True)
    return relatives.tree(uri, where)


def impact(uri, where):
    if where == "ledger":
        ledger.sync(full=True)
    return relatives.impact(uri, where)


@pytest.fixture
def family(store):
    """A base, three sources, a merge, a merge of it, and a diamond on top."""
    base = registered.version("base")
    a, b, c = (registered.version(name, base=base) for name in "abc")
    one = registered.version("one", base=base, sources=(a, b))
    two = registered.version("two", base=base, sources=(one, c))
    top = registered.version("top", base=base, sources=(one, two))
    return {"base": base, "a": a, "b": b, "c": c, "one": one, "two": two, "top": top}


def test_a_merge_leads_back_to_the_imports(family, where):
    base, a, b = (family[name] for name in ("base", "a", "b"))
    tuned = [(base, "base", "import", [])]
    assert shape(tree(family["one"], where)) == (
        family["one"],
        "",
        "merge",
        [
            (base, "base", "import", []),
            (a, "source", "finetune", tuned),
            (b, "source", "finetune", tuned),
        ],
    )


def test_merges_of_merges_and_diamonds_are_expanded_once(family, where):
    root = tree(family["top"], where)
    assert [parent.uri for parent in root.parents] == [
        family["base"],
        family["one"],
        family["two"],
    ]
    first, second = root.parents[1], root.parents[2].parents[1]
    assert first.uri == second.uri == family["one"]
    assert (len(first.parents), first.shown_above) == (3, False)
    assert (second.parents, second.shown_above) == ((), True)
    assert second.to_dict()["shown_above"] is True


def test_fifty_merges_of_merges(where):
    base, tuned, *merged = registered.chain(50)
    root = tree(merged[-1], where)
    assert depth(root) == 52  # the fifty, the tuned version, the base
    found = impact(tuned, where)
    assert [affected.uri for affected in found][:2] == merged[:2]
    assert len(found) == 50
    assert len(impact(base, where)) == 51


def test_a_deleted_source_stays_in_the_tree_and_can_be_asked_about(family, where):
    mlflow.MlflowClient().delete_model_version("b", "1")
    missing = tree(family["one"], where).parents[2]
    assert (missing.uri, missing.kind) == (family["b"], "missing")
    assert [affected.uri for affected in impact(family["b"], where)] == [
        family["one"],
        family["top"],
        family["two"],
    ]


def test_impact_names_the_ways_and_the_live_aliases(family, where):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("top", "champion", "1")
    client.set_registered_model_alias("top", "best", "1")
    client.set_registered_model_alias("one", "candidate", "1")
    found = {affected.uri: affected for affected in impact(family["a"], where)}
    assert list(found) == [family["one"], family["top"], family["two"]]
    one, top, two = found.values()
    assert (one.direct, one.via, one.aliases) == (True, (family["a"],), ("candidate",))
    assert (top.direct, top.via) == (False, (family["one"], family["two"]))
    assert (top.aliases, two.aliases) == (("best", "champion"), ())
    client.delete_registered_model_alias("top", "best")
    assert relatives.impact(family["a"], where)[1].aliases == ("champion",)
    assert relatives.impact(family["top"], where) == ()


def test_a_copy_leads_to_its_original_and_is_affected_with_it(family, where):
    client = mlflow.MlflowClient()
    client.copy_model_version(family["one"], "copy")
    later = registered.version("later", base=family["base"], sources=("models:/copy/1", "x"))
    root = tree("models:/copy/1", where)
    assert (root.parents[0].uri, root.parents[0].role) == (family["one"], "copy")
    found = [affected.uri for affected in impact(family["one"], where)]
    assert found == ["models:/copy/1", family["top"], family["two"], later]
    client.delete_model_version("one", "1")
    assert later in [affected.uri for affected in impact(family["a"], where)]


def test_a_logged_model_is_the_version_that_was_registered_from_it(where):
    model = registered.logged()
    base = registered.version("base")
    merge = registered.version("merged", base=base, sources=(f"models:/{model}",))
    assert tree(merge, where).parents[1].uri == f"models:/{model}"
    assert [affected.uri for affected in impact(f"models:/{model}", where)] == [merge]
    first = registered.version("tuned", base=base, source=f"models:/{model}")
    registered.version("again", base=base, source=f"models:/{model}")
    assert tree(merge, where).parents[1].uri == first
    for uri in (first, f"models:/{model}"):
        assert [affected.uri for affected in impact(uri, where)] == [merge]


def test_an_unknown_version_is_an_error(where):
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/none/1"):
        relatives.tree("models:/none/1", where)
    with pytest.raises(errors.RegistryError, match="models:/none/1 is neither in the registry nor"):
        relatives.impact("models:/none/1", where)
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/none@best"):
        relatives.impact("models:/none@best", where)


def test_a_ledger_that_was_not_synced_says_so(store):
    uri = registered.version("base")
    words = "the ledger does not know models:/base/1; run `mlflow-breadcrumbs ledger sync`"
    with pytest.raises(errors.LedgerError, match=words):
        relatives.tree(uri, "ledger")


def test_a_server_that_is_down_is_no_deleted_version(family, monkeypatch):
    import zoos

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    previous = mlflow.get_tracking_uri()
    zoos.use("http://127.0.0.1:9")
    try:
        with pytest.raises(errors.RegistryError, match=r"127.0.0.1:9"):
            relatives.impact(family["a"])
    finally:
        zoos.use(previous)
