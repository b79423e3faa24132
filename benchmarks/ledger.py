"""The ledger with many versions: `python benchmarks/ledger.py` writes results/ledger.md.

A synthetic registry of n versions and 3·n edges, written into a real MLflow database; the ledger is
synced from it, in SQLite and in a PostgreSQL that the benchmark starts itself (as the tests do),
and asked for the ancestors and descendants of versions with 1,000 relatives.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import events, index, stores
from mlflow_breadcrumbs.registry import graph, tag_keys
from mlflow_breadcrumbs.support import canonical

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import postgres

RELATIVES = 1000
"""Versions per family: a base, and merges of three versions of the same family each."""
REPEATS = 30


def fill(tracking_uri: str, count: int) -> None:
    """Write a registry of `count` versions, as rows, since MLflow's calls take 10 ms each.

    Each family is a base and versions that were made from the base and two of the ten before them,
    so that the first has a whole family of descendants, and the last one of ancestors.
    """
    engine = sql.create_engine(tracking_uri)
    tables = sql.MetaData()
    tables.reflect(engine, only=["registered_models", "model_versions", "model_version_tags"])
    models, versions, tags = (
        tables.tables[name]
        for name in ("registered_models", "model_versions", "model_version_tags")
    )
    families = count // RELATIVES
    for family in range(families):
        name = f"family-{family}"
        now = int((time.time() - 3600 * (families - family)) * 1000)  # one family an hour
        lines = []
        for number in range(1, RELATIVES + 1):
            parents = {f"models:/{name}/{max(1, number - step)}" for step in (1, 2 + number % 9)}
            lines += [
                {"name": name, "version": number, "key": key, "value": value}
                for key, value in version_tags(name, number, sorted(parents)).items()
            ]
        with engine.begin() as connection:
            connection.execute(sql.insert(models).values(name=name, creation_time=now))
            connection.execute(
                sql.insert(versions),
                [
                    {
                        "name": name,
                        "version": number,
                        "creation_time": now,
                        "last_updated_time": now,
                        "current_stage": "None",
                        "source": f"models:/m-{family:08x}{number:08x}",
                        "status": "READY",
                    }
                    for number in range(1, RELATIVES + 1)
                ],
            )
            connection.execute(sql.insert(tags), lines)
    engine.dispose()


def version_tags(name: str, number: int, parents: list[str]) -> dict[str, str]:
    """What this package would have written: about three edges per version."""
    digest = canonical.digest([name, number])
    made = {tag_keys.KIND: "import", tag_keys.WEIGHTS_DIGEST: digest}
    if number == 1:
        return made
    return made | {
        tag_keys.KIND: "merge",
        tag_keys.BASE: f"models:/{name}/1",
        tag_keys.SOURCES: canonical.dumps(parents).decode(),
    }


def measure(uri: str, count: int) -> dict[str, str]:
    """Sync, then ask; one row of the table."""
    with stores.opened(uri) as ledger:
        started, worked = time.perf_counter(), time.process_time()
        done = index.sync(ledger, full=True)
        seconds, work = time.perf_counter() - started, time.process_time() - worked
        assert done.added == count, done
        started = time.perf_counter()
        again = index.sync(ledger)
        incremental = time.perf_counter() - started
        assert (again.added, again.changed) == (0, 0)
        with ledger.reading() as connection:
            edges = connection.scalar(sql.text("SELECT count(*) FROM edges"))
            if connection.dialect.name == "postgresql":
                connection.execute(sql.text("ANALYZE"))
        with ledger.reading() as connection:
            lineage = asked(connection, index.ancestors, f"models:/family-0/{RELATIVES}")
            impact = asked(connection, index.descendants, "models:/family-0/1")
        rate = appended(ledger)
    return {
        "versions": f"{count:,}",
        "edges": f"{edges:,}",
        "sync": f"{count / seconds:,.0f}/s",
        "sync, per second of CPU": f"{count / work:,.0f}/s",
        "sync again": f"{incremental:.1f} s",
        "lineage": lineage,
        "impact": impact,
        "events": f"{rate:,.0f}/s",
    }


def asked(connection: sql.Connection, question, uri: str) -> str:
    """Best and median of the question, all rows read, and the median of this process's CPU."""
    taken, worked = [], []
    for _ in range(REPEATS):
        started, began = time.perf_counter(), time.process_time()
        found: graph.Graph = question(connection, uri)
        taken.append((time.perf_counter() - started) * 1000)
        worked.append((time.process_time() - began) * 1000)
        assert len(found.versions) == RELATIVES
    return (
        f"{min(taken):.0f} / {statistics.median(taken):.0f} ms, "
        f"{statistics.median(worked):.0f} ms CPU"
    )


def appended(ledger: stores.Store, count: int = 200) -> float:
    """Events per second of one writer, each in its own transaction."""
    draft = events.Draft(actor="ann@here", kind="merge", phase="done", name="model")
    started = time.perf_counter()
    for _ in range(count):
        with ledger.writing() as connection:
            events.append(connection, draft)
    return count / (time.perf_counter() - started)


def tracking_database(folder: Path) -> str:
    """An empty MLflow database."""
    uri = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    subprocess.run(command, check=True, capture_output=True)
    return uri


def rows(sizes: list[int]) -> Iterator[dict[str, str]]:
    """Every size in both databases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with postgres.running(folder) as server:
            for count in sizes:
                place = folder / str(count)
                place.mkdir()
                uri = tracking_database(place)
                mlflow.set_tracking_uri(uri)
                mlflow.set_registry_uri(uri)
                fill(uri, count)
                yield {"database": "SQLite"} | measure(f"sqlite:///{place}/ledger.db", count)
                database = postgres.schema(server, f"ledger{count}")
                yield {"database": "PostgreSQL"} | measure(database, count)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "ledger.md"
    )
    arguments = parser.parse_args()
    table = []
    for row in rows(arguments.sizes):
        print(row, flush=True)
        table.append(row)
        write(table, arguments.output)  # after each row: a run that is stopped leaves the others


def write(table: list[dict[str, str]], output: Path) -> None:
    """The rows so far, as Markdown."""
    columns = list(table[0])
    lines = [
        "# The ledger with many versions",
        "",
        f"`python benchmarks/ledger.py`, {datetime.date.today()}: {platform.machine()}, "
        f"{os.cpu_count()} processors, load average {os.getloadavg()[1]:.0f} (other jobs), Python "
        f"{platform.python_version()}, MLflow {mlflow.__version__}, SQLAlchemy {sql.__version__}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row.values()) + " |" for row in table),
        "",
        "`sync`: versions per second, read from an MLflow registry in SQLite and written to an "
        "empty ledger. `sync again`: the time of a second, incremental sync. `lineage`, `impact`: "
        f"best and median of {REPEATS} recursive queries for a version with {RELATIVES:,} "
        "relatives up to 1,000 steps away, all rows read and made into a graph; CPU is that of the "
        "asking process (for SQLite: the database too). `events`: one writer, a transaction each.",
        "",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
