"""The events that something is decided by: only out of a chain that was walked, and holds."""

from collections.abc import Collection

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import chain, events, sharing, stores


def proven(name: str, digests: Collection[str] = ()) -> list[events.Event]:
    """The events of a registered model and those about some weights, each by who began the job.

    What others wrote is taken up first, where each has a ledger of their own. The whole chain is
    walked, and held against the heads that the model's versions carry: what `ledger verify` rejects
    decides nothing.

    Args:
        name: The registered model.
        digests: Of weights, which may have events under other names.

    Raises:
        LedgerError: The chain does not hold, or the ledger can't be used; or what others wrote
            about these weights was changed.
        RegistryError: The registry can't be read.
    """
    wanted = frozenset(digests)
    # First the heads, then the chain: what is added meanwhile makes the chain longer, not wrong.
    kept = sharing.exchange(name, wanted)
    found: list[events.Event] = []

    def is_asked(event: events.Event) -> bool:
        return event.name == name or event.details.get("weights_digest") in wanted

    def visit(stored: events.Event) -> None:
        event = events.counted(stored)
        if event.phase == events.INTENT or is_asked(event):
            found.append(stored)

    with stores.opened() as ledger, ledger.reading() as connection:
        verdict = chain.verify(connection, kept, visit)
        where = ledger.place
    if verdict.problem is not None:
        raise errors.LedgerError(
            f"the ledger {where} does not hold, so that nothing in it counts: {verdict.problem}. "
            "See `mlflow-breadcrumbs ledger verify`, and restore the ledger from a backup"
        )
    history = events.credited(events.in_order(found))
    return [event for event in history if is_asked(event)]
