"""What came out of the quickstart, in three plain sentences, computed from its figures."""

from collections.abc import Mapping, Sequence

from mlflow_breadcrumbs.quickstart import contest

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def conclude(
    entries: Sequence[contest.Contender], version: str, measured_by: str
) -> tuple[str, ...]:
    """What the merged model keeps, what it gains and loses, and what to do next.

    Args:
        entries: base, sources (each on its own task), merged models; the last is registered.
        version: URI of the merged version, as one types it.
        measured_by: the option that says what measures, as one types it: `--tasks FILE`.
    """
    base, sources, *others, merged = entries
    tasks = len(merged.accuracies)
    gained = [task for task, own in merged.accuracies.items() if own > base.accuracies[task]]
    lost = [task for task, own in merged.accuracies.items() if own < base.accuracies[task]]
    weakest = weakest_task(base, sources, merged)
    return (
        f"The merged model ({merged.name}, nothing tuned) keeps {merged.kept:.0%} of the accuracy "
        f"of {_number(tasks)} fine-tuned models, on average over their tasks, in one model instead "
        f"of {_number(tasks)} and without training; the base has {base.kept:.0%} of it.",
        f"Its average accuracy is {merged.average:.3f}, the base's {base.average:.3f}: it is "
        f"better than the base on {_number(len(gained))} of {_number(tasks)} tasks and worse on "
        f"{_lost(lost, base, merged)}{_better(others, merged)}.",
        f"Next, `mlflow-breadcrumbs blame {version} --task {weakest} {measured_by}` says "
        f"what costs its weakest task, {weakest}, most, and the README has the four commands for "
        "models of your own.",
    )


def normalized(merged: contest.Contender, sources: contest.Contender) -> Mapping[str, float]:
    """Accuracy over that of the task's own source, by task; a source that got none right is 0."""
    return {
        task: own / sources.accuracies[task] if sources.accuracies[task] else 0.0
        for task, own in merged.accuracies.items()
    }


def weakest_task(
    base: contest.Contender, sources: contest.Contender, merged: contest.Contender
) -> str:
    """The task that lost most against the base; where none did, the one that keeps least."""
    change = {task: own - base.accuracies[task] for task, own in merged.accuracies.items()}
    worst = min(change, key=change.__getitem__)
    if change[worst] < 0:
        return worst
    kept = normalized(merged, sources)
    return min(kept, key=kept.__getitem__)


def _lost(tasks: Sequence[str], base: contest.Contender, merged: contest.Contender) -> str:
    if not tasks:
        return "none"
    return ", ".join(
        f"{task} ({merged.accuracies[task]:.3f}, the base {base.accuracies[task]:.3f})"
        for task in tasks
    )


def _better(others: Sequence[contest.Contender], merged: contest.Contender) -> str:
    """Other ways to merge that came out ahead."""
    ahead = [entry for entry in others if entry.average > merged.average]
    if not ahead:
        return ""
    return "; ahead of it " + ", ".join(f"{entry.name} with {entry.average:.3f}" for entry in ahead)


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
