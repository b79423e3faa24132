"""What whole commands cost before they do anything: processor seconds, held against MLflow's own.

    python benchmarks/startup.py --before FOLDER

Runs each command in a process of its own against a tiny zoo in a SQLite store, several times, in
turns with `python -c "import mlflow"`, which no command that asks a registry can do without, and
with a program that opens that store and does nothing. Counted is what the kernel counts for the
process and its children, user and system: less moved by what else runs than wall time is. Each
command finds the same store: databases are put back before it starts. FOLDER is another checkout;
both are measured in the same run, in turns. Columns that are there already, in
`benchmarks/results/startup.json`, stay: `--label` names the new one. Writes
`benchmarks/results/startup.md`.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
JSON = RESULTS / "startup.json"

MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
WEIGHTS = """
import sys, torch
from safetensors.torch import save_file
try:
    from mlflow_breadcrumbs.models import architecture
except ImportError:  # a checkout from before there were rooms
    from mlflow_breadcrumbs import architecture
state = architecture.build(architecture.load_config("tiny.json")).state_dict()
for number, name in enumerate(("base", "one", "two")):
    made = {key: (tensor + 0.01 * number * torch.randn(tensor.shape)).contiguous()
            for key, tensor in state.items()}
    save_file(made, name + ".safetensors")
"""
IMPORT = "import mlflow"
OPEN = """
import mlflow
client = mlflow.MlflowClient()
client.search_registered_models(max_results=1)
"""
REFERENCES = {"import mlflow": IMPORT, "MLflow opens its store": OPEN}
NEW = "--registered-model", "new"
MERGE = "--base", "models:/base/1", "--sources", "models:/one/1,models:/two/1"
COMMANDS: dict[str, tuple[str, ...]] = {
    "lineage": ("lineage", "models:/merged/2"),
    "impact": ("impact", "models:/base/1"),
    "history": ("history", "merged"),
    "ledger head": ("ledger", "head"),
    "ledger verify": ("ledger", "verify"),
    "approve": ("approve", "merged", "--version", "2"),
    "rollback": ("rollback", "merged", "--alias", "champion"),
    "promote --help": ("promote", "--help"),
    "compare": ("compare", *MERGE[:2], "--source", "models:/one/1", "--source", "models:/two/1"),
    "verify": ("verify", "models:/merged/2"),
    "merge, found": ("merge", *MERGE, "--registered-model", "merged", "--alpha", "0.3"),
    "merge, no tasks": ("merge", *MERGE, *NEW, "--alpha", "0.7"),
    "import, no heads": ("import", "one.safetensors", "--architecture", "tiny.json", *NEW),
    "merge-files": (
        "merge-files", "--base", "base.safetensors", "--source", "one.safetensors",
        "--source", "two.safetensors", "--output", "out.safetensors", "--overwrite",
        "--method", "breadcrumbs",
    ),
}  # fmt: skip
"""Each against a store with a base, two sources, and two merges, the second one the champion."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One checkout with a store of its own, since ledgers of other versions may not go together."""

    label: str
    package: Path
    folder: Path

    def seconds(self, arguments: Sequence[str], *, user: str = "maker") -> float:
        """Processor seconds of a Python with these arguments, its children's included."""
        environment = os.environ | {
            "PYTHONPATH": str(self.package),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "LOGNAME": user,
            "BREADCRUMBS_CACHE": str(self.folder / "cache"),
        }
        with (self.folder / "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.folder,
                env=environment,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            if process.returncode:
                raise SystemExit(f"{self.label}: {' '.join(arguments)} failed:\n{log.read()}")
        return usage.ru_utime + usage.ru_stime

    def command(self, *arguments: str, user: str = "maker") -> float:
        """Processor seconds of one of our commands."""
        return self.seconds(("-m", "mlflow_breadcrumbs", *arguments), user=user)

    def fill(self) -> None:
        """Make the store, and keep its databases to put back."""
        self.folder.mkdir(parents=True)
        (self.folder / "tiny.json").write_text(json.dumps(MODEL))
        self.seconds(("-c", WEIGHTS))
        for name in ("base", "one", "two"):
            self.command(
                "import", f"{name}.safetensors", "--architecture", "tiny.json",
                "--registered-model", name,
            )  # fmt: skip
        for alpha in ("0.3", "0.5"):
            target = ("--registered-model", "merged", "--alias", "champion")
            self.command("merge", *MERGE, *target, "--alpha", alpha)
        for file in self.folder.glob("*.db"):
            shutil.copy(file, file.with_suffix(".kept"))

    def restore(self) -> None:
        """Put the databases back as they were."""
        for file in self.folder.glob("*.kept"):
            shutil.copy(file, file.with_suffix(".db"))


def measure(contenders: Sequence[Contender], names: Sequence[str], rounds: int) -> dict[str, dict]:
    """Per contender and command, the seconds of each round; all contenders by turns."""
    found = {
        contender.label: {name: [] for name in (*REFERENCES, *names)} for contender in contenders
    }
    for number in range(-1, rounds):  # the first round compiles what is not compiled
        for name in (*REFERENCES, *names):
            for contender in contenders:
                contender.restore()
                if name in REFERENCES:
                    taken = contender.seconds(("-c", REFERENCES[name]))
                else:
                    taken = contender.command(*COMMANDS[name], user="other")
                if number >= 0:
                    found[contender.label][name].append(taken)
            row = {label: rows[name][-1:] for label, rows in found.items()}
            print(number, name, row, file=sys.stderr, flush=True)
    return found


def table(raw: dict[str, dict]) -> list[str]:
    """All columns side by side."""
    labels = list(raw)
    lines = ["| | " + " | ".join(labels) + " |", "|---|" + "---|" * len(labels)]
    for name in (*REFERENCES, *COMMANDS):
        cells = []
        for label in labels:
            rows = raw[label]["rows"]
            if not rows.get(name):
                cells.append("")
                continue
            median = statistics.median(rows[name])
            ratio = median / statistics.median(rows["import mlflow"])
            cells.append(f"{median:.2f} s, {ratio:.2f} ×")
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, default=HERE.parent, help="checkout to measure")
    parser.add_argument("--label", default="after", help="of its column")
    parser.add_argument("--before", type=Path, help="another checkout, measured in the same run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", help="what else the machine did, for the table")
    parser.add_argument("--only", choices=list(COMMANDS), nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contenders = [Contender(given.label, given.package.resolve(), Path(folder) / "one")]
        if given.before:
            before = Contender("before", given.before.resolve(), Path(folder) / "two")
            contenders.insert(0, before)
        for contender in contenders:
            contender.fill()
        found = measure(contenders, given.only, given.rounds)
    raw = json.loads(JSON.read_text()) if JSON.exists() else {}
    day = datetime.datetime.now(datetime.UTC).date()
    machine = (
        f"{day}, {len(os.sched_getaffinity(0))} processors, Python {platform.python_version()}, "
        f"{given.rounds} rounds" + (f", {given.note}" if given.note else "")
    )
    for label, rows in found.items():
        raw[label] = {"machine": machine, "rows": rows}
    write(raw)


def write(raw: dict[str, dict]) -> None:
    """Write the columns, new and old ones, and the table of them."""
    lines = [
        "# Starting up",
        "",
        "Processor seconds (user and system, median) of whole commands on a tiny zoo in a SQLite",
        "store, and the ratio to `python -c 'import mlflow'` in the same run. *MLflow opens its",
        "store* is `import mlflow` and one search in that store, with the garbage collector as",
        "it is by default; our commands look for garbage less often, so that they can be below it.",
        "",
        *table(raw),
        "",
        *(f"{label}: {column['machine']}." for label, column in raw.items()),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    JSON.write_text(json.dumps(raw, indent=1) + "\n")
    (RESULTS / "startup.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
