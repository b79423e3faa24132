"""MLflow's own tests of its REST API, against its server as it is and with the app and its guard.

    python benchmarks/mlflow_tests.py --mlflow CHECKOUT

`CHECKOUT` is a clone of MLflow's repository, best at the release that is installed: packages don't
carry these tests. They talk over HTTP to a server that they start themselves, on SQLite. Each file
runs twice; the second time this file is a plugin of pytest, which puts into the server what
`--app-name breadcrumbs` puts there, with a pin that concerns every
registered model. Every test must end as it does without. Writes
`benchmarks/results/mlflow-tests.md`; the exit code is 1 where a test ends in another way.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
FILES = {
    "tests/tracking/test_model_registry.py": "",
    "tests/tracking/test_client_webhooks.py": "",
    "tests/store/model_registry/test_rest_store_webhooks.py": "",
    "tests/tracking/test_rest_tracking.py": "model_version or logged_model or artifact or graphql",
}
"""Those about the registry; of a file, the tests of these names."""
CONFIGURATION = 'aliases:\n  "*@pinned": policy.yaml\n'
POLICY = "average_normalized_accuracy: 0.9\n"


def pytest_configure(config: pytest.Config) -> None:
    """Put ours into the server that the tests start; as a plugin."""
    import mlflow.server
    from mlflow.server import handlers

    from mlflow_breadcrumbs.server import (
        app,
        callers,
        errands,
        guard,
        in_force,
        noticing,
        visibility,
    )

    os.environ[mlflow.server.BACKEND_STORE_URI_ENV_VAR] = "sqlite:///unused.db"
    app.add_pages(mlflow.server.app, visibility.everything)
    app.add_guard(mlflow.server.app, callers.anybody)
    pins = in_force.taken().pins
    del os.environ[mlflow.server.BACKEND_STORE_URI_ENV_VAR]  # the tests say where theirs are
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(variable, None)
    initialize = handlers.initialize_backend_stores
    doing = [errands.Errands(None, None)]

    def initialized(*given: Any, **named: Any) -> None:
        """Each test has a database of its own."""
        initialize(*given, **named)
        guard.stand(pins)
        doing.pop().end()
        store = noticing.store()
        doing.append(errands.Errands(store, None))
        if store is not None:
            noticing.Noticing(store, lambda: None, doing[0].put).stand()

    handlers.initialize_backend_stores = initialized


def main() -> None:
    """Run all files both ways, and write down how the tests ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mlflow", type=Path, required=True, help="a clone of MLflow's repository")
    parser.add_argument("--pytest", default="", help="further arguments for pytest, as '-k alias'")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        apart = Path(folder)  # so that the MLflow that is installed is the one that runs
        shutil.copytree(chosen.mlflow / "tests", apart / "tests")
        (apart / "server.yaml").write_text(CONFIGURATION)
        (apart / "policy.yaml").write_text(POLICY)
        plain, ours = (
            {file: _run(apart, file, chosen.pytest.split(), ours=ours) for file in FILES}
            for ours in (False, True)
        )
    _write(chosen.mlflow, plain, ours)
    sys.exit(1 if any(_differing(plain[file], ours[file]) for file in FILES) else 0)


def _run(folder: Path, file: str, further: list[str], *, ours: bool) -> dict[str, str]:
    """How each test of a file ended."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "120"]
    command += ["--rootdir", str(folder), file]
    names = f"({FILES[file]}) and " if FILES[file] else ""
    command += ["-k", f"{names}not [file", f"--junitxml={report}", *further]  # for databases only
    paths = [str(folder), str(HERE), str(HERE.parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",  # without it example.com is looked up
    }
    if ours:
        command += ["-p", "mlflow_tests"]
        environment["BREADCRUMBS_SERVER_CONFIG"] = str(folder / "server.yaml")
        environment["BREADCRUMBS_LEDGER_URI"] = f"sqlite:///{folder / 'ledger.db'}"
    begun = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=False)
    which = "with the app" if ours else "as it is"
    print(f"{file}, {which}: {time.monotonic() - begun:.0f} s", flush=True)
    return _ends(report)


def _ends(report: Path) -> dict[str, str]:
    if not report.exists():
        return {}
    return {
        f"{case.get('classname')}::{case.get('name')}": next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        for case in ElementTree.parse(report).iter("testcase")
    }


def _differing(plain: dict[str, str], ours: dict[str, str]) -> list[str]:
    """The tests that end in another way with the app."""
    return sorted(
        f"{name}: {plain.get(name, 'absent')}, with the app {ours.get(name, 'absent')}"
        for name in plain.keys() | ours.keys()
        if plain.get(name) != ours.get(name)
    )


def _write(
    checkout: Path, plain: dict[str, dict[str, str]], ours: dict[str, dict[str, str]]
) -> None:
    lines = [
        "# MLflow's own tests, without the app and with it",
        "",
        "Made by `python benchmarks/mlflow_tests.py --mlflow CHECKOUT`. The server is MLflow "
        f"{metadata.version('mlflow')}; the tests are those of {_release(checkout)}. What fails in "
        "both columns asks for another release of MLflow, or for another service. With the app, a "
        "pin concerns every registered model.",
        "",
        "| file | passed as it is | passed with the app | failed in both | end otherwise |",
        "|---|---:|---:|---:|---|",
    ]
    for file in FILES:
        counts = [Counter(ends[file].values()) for ends in (plain, ours)]
        both = sum(
            plain[file][name] == ours[file].get(name) and plain[file][name] in ("failure", "error")
            for name in plain[file]
        )
        differ = "; ".join(_differing(plain[file], ours[file])) or "none"
        passed = " | ".join(str(count["passed"]) for count in counts)
        lines.append(f"| {file} | {passed} | {both} | {differ} |")
    (HERE / "results/mlflow-tests.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _release(checkout: Path) -> str:
    version = checkout / "mlflow/version.py"
    if not version.exists():
        return "an unknown release"
    line = next(line for line in version.read_text().splitlines() if line.startswith("VERSION"))
    return line.partition("=")[2].strip().strip('"')


if __name__ == "__main__":
    main()
