"""Events in and out, by signed HTTP.

`signatures` signs and checks; `receiver` takes MLflow's webhooks with the `patience` that a
connection gets, `subscription` registers it there; `outbox` delivers the ledger's events to
receivers outside, `notifying` reads which one the environment names.
"""
