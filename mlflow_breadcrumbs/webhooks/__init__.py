"""Events in and out, by signed HTTP.

`signatures` signs and checks; `receiver` takes MLflow's webhooks, `subscription` registers it
there; `outbox` delivers the ledger's events to receivers outside.
"""
