"""Our own few lines, held against other people's packages that do the same."""

import datetime
import math

import networkx
import numpy as np
import pytest
import standardwebhooks
from graphs import PAIRS, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import proportion

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import index, schema, stores
from mlflow_breadcrumbs.support import intervals
from mlflow_breadcrumbs.webhooks import signatures

COUNTS = st.integers(1, 10**6).flatmap(
    lambda total: st.tuples(st.integers(0, total), st.just(total))
)
CONFIDENCES = st.sampled_from((0.5, 0.8, 0.95, 0.999))
ROUNDING = {"rel_tol": 1e-9, "abs_tol": 1e-12}
"""The formulas are equal; they are computed in another order."""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def near(one, other):
    return all(math.isclose(a, b, **ROUNDING) for a, b in zip(one, other, strict=True))


@settings(deadline=None)
@given(COUNTS, CONFIDENCES)
def test_wilson_is_that_of_statsmodels_and_of_scipy(counts, confidence):
    found = intervals.wilson(*counts, confidence)
    theirs = proportion.proportion_confint(*counts, alpha=1 - confidence, method="wilson")
    assert near(found, theirs)
    low, high = stats.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert near(found, (low, high))


@settings(deadline=None)
@given(COUNTS, COUNTS, CONFIDENCES)
def test_newcombe_is_that_of_statsmodels(one, other, confidence):
    theirs = proportion.confint_proportions_2indep(
        *one, *other, method="newcomb", compare="diff", alpha=1 - confidence
    )
    assert near(intervals.newcombe(one, other, confidence), theirs)


def edges(pairs):
    """The same graph for networkx, an edge from child to parent."""
    theirs = networkx.DiGraph()
    theirs.add_nodes_from(map(str, range(8)))
    theirs.add_edges_from((str(a), str(b)) for a, b in pairs)
    return theirs


@settings(deadline=None)
@given(PAIRS, st.integers(0, 7))
def test_ancestors_and_descendants_are_those_of_networkx(pairs, start):
    known, theirs, at = made(pairs), edges(pairs), str(start)
    # Its descendants lie along the edges; ours are what was made from a version, against them.
    assert set(known.ancestors(at).versions) == networkx.descendants(theirs, at) | {at}
    assert set(known.descendants(at).versions) == networkx.ancestors(theirs, at) | {at}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PAIRS, st.integers(0, 7))
def test_the_ledgers_recursive_queries_are_networkx_too(tmp_path, pairs, start):
    known, theirs, at = made(pairs), edges(pairs), str(start)
    with stores.opened(f"sqlite:///{tmp_path}/ledger.db") as opened:
        with opened.writing() as connection:
            for entity in (schema.VersionRow, schema.EdgeRow):
                connection.execute(schema.table(entity).delete())
            connection.execute(
                schema.table(schema.VersionRow).insert(),
                [index._row(version) for version in known.versions.values()],
            )
            for edge in known.edges:
                connection.execute(schema.table(schema.EdgeRow).insert().values(**vars(edge)))
        with opened.reading() as connection:
            up, down = index.ancestors(connection, at), index.descendants(connection, at)
    assert set(up.versions) == networkx.descendants(theirs, at) | {at}
    assert set(down.versions) == networkx.ancestors(theirs, at) | {at}


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1), st.text())
def test_a_webhooks_signature_is_that_of_the_specifications_package(identifier, body):
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    theirs = standardwebhooks.Webhook(SECRET).sign(identifier, now, body)
    timestamp = str(int(now.timestamp()))
    ours = signatures.sign(signatures.key(SECRET), identifier, timestamp, body.encode())
    assert ours == theirs


def test_what_we_send_passes_their_check_and_what_they_sign_ours():
    now = datetime.datetime.now(datetime.UTC)
    timestamp, body = str(int(now.timestamp())), '{"kind": "promotion"}'
    library, key = standardwebhooks.Webhook(SECRET), signatures.key(SECRET)
    signature = signatures.sign(key, "msg_1", timestamp, body.encode())
    headers = dict(zip(signatures.STANDARD, ("msg_1", timestamp, signature), strict=True))
    assert library.verify(body, headers) == {"kind": "promotion"}
    signatures.check(key, "msg_1", timestamp, body.encode(), library.sign("msg_1", now, body))
    changed = body.replace("promotion", "rollback")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        library.verify(changed, headers)
    with pytest.raises(errors.SignatureError):
        signatures.check(key, "msg_1", timestamp, changed.encode(), signature)


def test_the_normal_quantile_of_the_intervals_is_scipys():
    """95%: where all are right, the lower end is n / (n + z²)."""
    z = stats.norm.ppf(0.975)
    for total in (1, 7, 1023):
        assert np.isclose(intervals.wilson(total, total).low, total / (total + z * z), rtol=1e-12)
