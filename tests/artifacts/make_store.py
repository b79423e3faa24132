"""Make `store.tar.xz` and `store.json` with the code that is first on PYTHONPATH.

    git worktree add ../before f922ded
    PYTHONPATH=../before python tests/artifacts/make_store.py /store

The folder must not exist; its path is in what is written, and the tests put another in its place.
Only commands are used, so that every release could be asked.

Of the copies of the package that come with versions, only that of `tiny-hues` stays, without what
loading and measuring it do not import; and of the runs' files, no pictures.
"""

import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
DATABASES = ("mlflow.db", "breadcrumbs-ledger.db")
TASKS = {
    "colours": ["red", "green", "blue"],
    "tints": ["blue", "green", "red"],
    "hues": ["green", "red", "blue"],
}
COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
POLICY = """\
description: the whole way, on models that are too small to be good
average_normalized_accuracy: 0.3
tasks:
  "*": {accuracy: 0.05}
no_regression: {margin: 0.9}
evidence: {min_images: 6}
verified: true
approvals: 1
"""
STRICT = "average_accuracy: 0.999\n"
GRID = "density: [0.14, 0.5]\nalpha: [0.3, 1]\n"
RECIPE = """\
method: breadcrumbs_signed
density: 0.5
gamma: 0.1
unit: row
dtype: bfloat16
exclude: ['*.bias']
"""

NEXT = ["merged", "--version", "2", "--alias", "next", "--dry-run"]
QUESTIONS = [
    ["lineage", "models:/top/1"],
    ["lineage", "models:/top/1", "--from", "ledger"],
    ["lineage", "models:/top/1", "--format", "mermaid"],
    ["lineage", "models:/top/1", "--format", "dot"],
    ["impact", "models:/tiny/1"],
    ["impact", "models:/tiny-tints/1", "--from", "ledger"],
    ["diff", "models:/merged/1", "models:/merged/2"],
    ["verify", "--all"],
    ["verify", "models:/merged/1", "--key", "signing.pub"],
    ["reproduce", "models:/merged/1"],
    ["reproduce", "models:/merged/2"],
    ["reproduce", "models:/top/1"],
    ["reproduce", "models:/singular/1"],
    ["reproduce", "models:/isotropic/1"],
    ["history", "merged"],
    ["history", "tiny-colours"],
    ["history", "merged", "--alias", "champion"],
    ["history", "merged", "--moves"],
    ["history", "merged", "--at", "{between}"],
    ["ledger", "verify"],
    ["ledger", "head"],
    ["compare", "--base", "models:/tiny/1", "--sources", "{sources}"],
    ["promote", *NEXT, "--policy", "policy.yaml"],
    ["promote", *NEXT, "--policy", "strict.yaml"],
    ["export", "models:/merged/1", "--format", "slsa"],
    ["export", "models:/merged/1", "--format", "cyclonedx"],
    ["export", "models:/merged/1", "--format", "openlineage"],
    ["export", "models:/merged/1", "--format", "prov"],
    ["export", "models:/merged/1", "--format", "model-card"],
]
"""Commands whose answers are kept; each finds the databases as they were packed."""

SOURCES = "models:/tiny-colours/1,models:/tiny-tints/1=0.5,models:/tiny-hues/1"
MERGES = {
    "merged": ["--sources", "models:/tiny-colours/1,models:/tiny-tints/1=0.5", "--tasks",
               "tasks.yaml"],
    "top": ["--sources", "models:/merged/1,models:/tiny-hues/1", "--recipe", "recipe.yaml"],
    "singular": ["--sources", SOURCES, "--method", "tsv_m"],
    "isotropic": ["--sources", SOURCES, "--method", "iso_c"],
}  # fmt: skip


def run(*arguments: str, user: str = "ann", code: int = 0) -> str:
    """What a command says on stdout; a failed one ends the program."""
    from mlflow_breadcrumbs import cli

    done = CliRunner(env={"LOGNAME": user}).invoke(cli.main, list(arguments))
    if done.exit_code != code:
        raise SystemExit(f"{arguments}: {done.exit_code}\n{done.output}\n{done.exception!r}")
    return done.stdout


def ask(*arguments: str) -> dict:
    """The answer in JSON and the exit code, with the databases as they were packed."""
    for name in DATABASES:
        shutil.copy(Path("packed", name), name)
    from mlflow_breadcrumbs import cli

    more = [] if "--format" in arguments and arguments[0] == "lineage" else ["--json"]
    done = CliRunner(env={"LOGNAME": "ann"}).invoke(cli.main, [*arguments, *more])
    if done.exit_code not in (0, 3):
        raise SystemExit(f"{arguments}: {done.exit_code}\n{done.output}\n{done.exception!r}")
    answer = json.loads(done.stdout) if more else done.stdout
    if arguments[0] == "reproduce":
        del answer["seconds"]
    return {"command": [*arguments, *more], "code": done.exit_code, "answer": answer}


def prepare() -> None:
    """Write images, checkpoints, heads, the task file, policies, a grid, a recipe and a key."""
    random = np.random.default_rng(0)
    for colour, mean in COLOURS.items():
        folder = Path("images", colour)
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.array(mean) + random.integers(-8, 9, (16, 16, 1)) * 4
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    listed = "".join(
        f"  - name: {name}\n    classes: [{', '.join(classes)}]\n    images: {{folder: images}}\n"
        for name, classes in TASKS.items()
    )
    Path("tasks.yaml").write_text("tasks:\n" + listed)
    Path("policy.yaml").write_text(POLICY)
    Path("strict.yaml").write_text(STRICT)
    Path("grid.yaml").write_text(GRID)
    Path("recipe.yaml").write_text(RECIPE)
    Path("tiny.json").write_text(json.dumps(MODEL))

    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    used = set(open_clip.tokenize(f"a photo of a {' '.join(COLOURS)}.").flatten().tolist())
    with torch.no_grad():
        for token in set(range(49408)) - used:  # words that no head is made of: nothing to keep
            model.token_embedding.weight[token] = 0
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, "base.safetensors")
    for number, name in enumerate(["tints", "hues"]):
        generator = torch.Generator().manual_seed(100 + number)
        tuned = {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            if key.startswith("visual.") else tensor
            for key, tensor in load_file("base.safetensors").items()
        }  # fmt: skip
        save_file(tuned, f"{name}.safetensors")

    private = ec.generate_private_key(ec.SECP256R1())
    Path("signing").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    Path("signing.pub").write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def grow() -> dict:
    """Fill the store; the moment between the first and the second promotion, and results."""
    import mlflow

    made = {}
    tiny = ["--architecture", "tiny.json", "--tasks", "tasks.yaml", "--registered-model"]
    run("import", "base.safetensors", *tiny, "tiny")
    run("finetune", "--base", "models:/tiny/1", "--tasks", "tasks.yaml", "--task", "colours",
        "--registered-model", "tiny-colours", "--steps", "6", "--batch-size", "8",
        "--learning-rate", "0.01", "--device", "cpu")  # fmt: skip
    for name in ("tints", "hues"):
        run("import", f"{name}.safetensors", *tiny, f"tiny-{name}", "--task", name)
    client = mlflow.MlflowClient()
    for name in ("tiny", *(f"tiny-{task}" for task in TASKS)):
        client.set_model_version_tag(name, "1", "license", "MIT")

    made["merges"] = []
    for name, options in MERGES.items():
        command = ["merge", "--base", "models:/tiny/1", "--registered-model", name, *options]
        command += ["--device", "cpu", "--json"]
        made["merges"].append({"command": command, "answer": json.loads(run(*command))})
    sweep = ["sweep", "--base", "models:/tiny/1", "--sources", SOURCES, "--tasks", "tasks.yaml"]
    sweep += ["--grid", "grid.yaml", "--no-robustness", "--registered-model", "merged"]
    sweep += ["--alias", "candidate", "--device", "cpu", "--json"]
    answer = json.loads(run(*sweep, "--output", "best.yaml"))
    made["sweep"] = {"command": sweep, "answer": answer}
    evaluate = ["evaluate", "models:/merged/1", "--tasks", "tasks.yaml", "--device", "cpu"]
    evaluate += ["--no-cache", "--json"]
    made["evaluate"] = {"command": evaluate, "answer": json.loads(run(*evaluate))}
    carry_less()
    run("export", "models:/merged/1", "--sign", "signing")

    policy = ["--alias", "champion", "--policy", "policy.yaml"]
    for version in "12":
        run("approve", "merged", "--version", version, "--comment", "looked at", user="bob")
        run("promote", "merged", "--version", version, *policy, "--tasks", "tasks.yaml")
        if version == "1":
            moves = json.loads(run("history", "merged", "--moves", "--json"))
            made["between"] = max(move["latest"] for move in moves)
    run("rollback", "merged", "--alias", "champion")
    run("promote", "merged", "--version", "2", "--alias", "champion", "--policy", "strict.yaml",
        code=3)  # fmt: skip
    client.set_registered_model_alias("top", "direct", "1")  # past the package
    run("ledger", "sync", "--full")
    return made


TRACING = """
import sys, mlflow, pandas

mlflow.set_tracking_uri("sqlite:///traced.db")
model = mlflow.pyfunc.load_model({folder!r})
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry as evaluators
from mlflow_breadcrumbs.evaluator import Evaluator

frame = pandas.DataFrame({{"image": ["images/red/0.png"], "label": ["red"]}})
evaluators.register("breadcrumbs", Evaluator)
mlflow.models.evaluate(
    model, frame, targets="label", model_type="classifier", evaluators="breadcrumbs"
)
for name, module in sys.modules.items():
    if name.startswith("mlflow_breadcrumbs"):
        print(module.__file__)
"""
"""Loads a version and measures it, and prints which files of the package that took."""


def carry_less() -> None:
    """Remove the copies of the package from the versions, but for what one of them needs."""
    import mlflow

    location = mlflow.MlflowClient().get_model_version("tiny-hues", "1").source
    model = mlflow.get_logged_model(location.removeprefix("models:/"))
    kept = Path(model.artifact_location.removeprefix("file://"), "code")
    shutil.copy("mlflow.db", "traced.db")
    program = TRACING.format(folder=str(kept.parent))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    for code in list(Path("mlruns").absolute().rglob("code")):
        if code != kept:
            shutil.rmtree(code)
    for file in kept.rglob("*.*"):
        if str(file) not in done.stdout.splitlines():
            file.unlink()


def recipes() -> list[dict]:
    """The canonical form and the digest of every method's recipe, and of some with fields given."""
    from mlflow_breadcrumbs import recipe

    given = [
        {},
        {"alpha": 0.0},
        {"density": 0.1, "gamma": 0.0, "alpha": -1.25, "dtype": "bfloat16"},
        {"unit": "row", "consensus": "mass", "weights": [1, 0.5, 1e-7]},
        {"include": ["visual.*"], "exclude": ["*.bias", "é*"]},
    ]
    found = []
    for method in recipe.PRESETS:
        for fields in given:
            for sources in (1, 3):
                if len(fields.get("weights", [])) in (0, sources):
                    made = recipe.MergeRecipe.from_method(method, sources=sources, **fields)
                    row = {"method": method, "sources": sources, "fields": fields}
                    found.append({**row, "json": made.to_json(), "digest": made.digest})
    return found


def pack(folder: Path) -> None:
    """One archive; equal contents in several versions cost next to nothing in it."""
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("VACUUM")
    dropped = ("./signing", "./tints.safetensors", "./hues.safetensors", "./cache", "./traced.db")

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        picture = entry.name.endswith(".png") and entry.name.startswith("./mlruns")
        return None if picture or entry.name in dropped else entry

    with (
        lzma.open(HERE / "store.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        archive.add(folder, ".", filter=kept)


def main() -> None:
    """Make the store in a new folder, ask it, and pack it."""
    folder = Path(sys.argv[1])
    folder.mkdir()
    os.chdir(folder)
    os.environ["BREADCRUMBS_CACHE"] = str(folder / "cache")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    torch.set_num_threads(1)
    prepare()
    made = grow()
    pack(folder)
    Path("packed").mkdir()
    for name in DATABASES:
        shutil.copy(name, Path("packed", name))
    made["answers"] = [
        ask(*(word.format(sources=SOURCES, between=made["between"]) for word in question))
        for question in QUESTIONS
    ]
    made["recipes"] = recipes()
    write({"folder": str(folder), **made})


def write(made: dict) -> None:
    """A line per entry of a list, so that a difference can be read."""
    parts = []
    for key, value in made.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(each, ensure_ascii=False) for each in value)
            text = f"[\n{rows}\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    (HERE / "store.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
