"""The ledger: in SQL, an index of the lineage and the append-only history of what was done.

1. `stores` finds and opens the database (SQLite beside the registry, PostgreSQL by URI);
   `migrations` makes the tables that `schema` declares, by the steps in `revisions`.
2. `events` adds to the history, each event with the hash of the one before; `chain` walks it.
3. `journal` puts a job into the history: intent, act, outcome; `anchors` puts the head into MLflow;
   `settling` finds out what came of a job that was killed in between, and `finishing` does what one
   that had registered its version has left to do.
4. `index` is filled from the registry and answers what descends from what, by recursive `queries`.
5. `alias_moves` moves an alias, with the compare-and-set that MLflow lacks; `turns` are taken
   where others have other ledgers; `locks` let one at a time judge and move.
6. `alias_state` keeps where each alias was last known to be; `alias_watch` holds that against the
   registry, or takes what a webhook tells; `alias_told` takes what the registry's own server tells,
   which has `alias_glances` for the rest; `alias_history` reads the events as moves of aliases.
7. `sharing` makes one history of the ledgers that several users of a registry have: what others
   need is in tags of the versions, as `letters`, and every ledger takes it up.
8. `audit` holds the ledger against MLflow; `proving` gives the events that decide something, out
   of a chain that holds; `reading` gives them to those who only look. `witnessed` is who a server
   saw register a version.

```python
from mlflow_breadcrumbs import ledger

with ledger.recording("merge", "clip-merged", run_id=run_id) as job:
    job.done(version)  # after registering it
ledger.verify()  # does the chain hold, and what MLflow keeps of it?
```
"""

from mlflow_breadcrumbs.ledger.alias_history import Change, Standing
from mlflow_breadcrumbs.ledger.alias_moves import move, set_alias
from mlflow_breadcrumbs.ledger.alias_watch import Delivery, look, take, watch
from mlflow_breadcrumbs.ledger.anchors import anchor_last
from mlflow_breadcrumbs.ledger.audit import LedgerCheck, check_version, is_made, verify
from mlflow_breadcrumbs.ledger.chain import ChainVerdict
from mlflow_breadcrumbs.ledger.events import ChainHead, Event, now
from mlflow_breadcrumbs.ledger.index import Synced
from mlflow_breadcrumbs.ledger.journal import check, note, recording
from mlflow_breadcrumbs.ledger.proving import proven
from mlflow_breadcrumbs.ledger.queries import (
    alias_changes,
    ancestry,
    descendants,
    head,
    history,
    standings,
    sync,
)
from mlflow_breadcrumbs.ledger.settling import settle
from mlflow_breadcrumbs.ledger.stores import using

__all__ = [
    "ChainHead",
    "ChainVerdict",
    "Change",
    "Delivery",
    "Event",
    "LedgerCheck",
    "Standing",
    "Synced",
    "alias_changes",
    "ancestry",
    "anchor_last",
    "check",
    "check_version",
    "descendants",
    "head",
    "history",
    "is_made",
    "look",
    "move",
    "note",
    "now",
    "proven",
    "recording",
    "set_alias",
    "settle",
    "standings",
    "sync",
    "take",
    "using",
    "verify",
    "watch",
]
