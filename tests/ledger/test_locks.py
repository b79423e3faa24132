"""One at a time decides about a model, over all processes that use a ledger."""

import os

import pytest
import together

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import locks, stores


def count(file, gate):
    """Read a number, and write the next one, many times; lost where two do so at once."""
    names = ("merged", "other") if os.getpid() % 2 else ("other", "merged")
    gate.wait()
    for _ in range(20):
        with locks.held(*names):
            number = int(file.read_text())
            file.write_text(str(number + 1))


def test_nobody_gets_between(ledger_uri, tmp_path):
    with stores.opened():
        pass
    file = tmp_path / "number"
    file.write_text("0")
    together.run_together(count, (file,), 4)
    assert file.read_text() == "80"


def test_it_ends_with_an_error(ledger_uri):
    with pytest.raises(ZeroDivisionError), locks.held("merged"):
        raise ZeroDivisionError
    with locks.held("merged"):
        pass


def test_waiting_ends(ledger_uri, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 1)
    refused = pytest.raises(errors.PromotionError, match="no end to it")
    with locks.held("merged"), refused, locks.held("merged"):
        pass
