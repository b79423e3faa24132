"""The tables of docs/study.md on presets as they are, made from the measurements of `untuned`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs.engine import recipe
from study import descriptions, measuring, paired, predicting, untuned
from study.tables import Table

AUTO = "auto"


class Found:
    """What was measured of a variant, by method and number of tasks.

    Args:
        folder: Of the results.
        variant: A name of `untuned.VARIANTS`.
    """

    def __init__(self, folder: Path, variant: str) -> None:
        self.variant = untuned.VARIANTS[variant]
        self._results = measuring.Results(folder / f"{variant}.jsonl")
        choices = descriptions.read(folder / untuned.CHOICES).get(variant, {})
        self.choices = {
            key: recipe.MergeRecipe.from_dict(row["recipe"]) for key, row in choices.items()
        }
        self.names = tuple(descriptions.read(folder / descriptions.TASKS))
        presets = [
            recipe.MergeRecipe.from_method(name, sources=len(self.names)) for name in recipe.PRESETS
        ]
        self.seeds = tuple(
            seed
            for seed in self.variant.seeds
            if all(self._measured(settings, len(self.names), seed) for settings in presets)
        )
        """Seeds of which all tasks were merged by every preset; a seed that was begun is none."""

    def at(self, method: str, size: int) -> list[measuring.Measured] | None:
        """By seed; none where a seed is missing."""
        found = []
        for seed in self.seeds:
            settings = self.settings(method, size, seed)
            measured = settings and self._measured(settings, size, seed)
            if not measured:
                return None
            found.append(measured)
        return found or None

    def _measured(
        self, settings: recipe.MergeRecipe, size: int, seed: int
    ) -> measuring.Measured | None:
        return self._results.find(seed, untuned.point(self.names, size, seed, settings))

    def settings(self, method: str, size: int, seed: int) -> recipe.MergeRecipe | None:
        """The recipe of a preset, or what the automatic method came to."""
        if method == AUTO:
            return self.choices.get(untuned.key(size, seed))
        return recipe.MergeRecipe.from_method(method, sources=size)

    def mean(self, method: str, size: int) -> float | None:
        """Over the seeds."""
        found = self.at(method, size)
        return paired.average([[each] for each in found]).mean if found else None

    def off(self, method: str, factor: float) -> float | None:
        """On validation images of all tasks, of the first seed, with another scale."""
        for name, own, point in untuned.off(self.names):
            if (name, own) == (method, factor):
                found = self._results.find(self.seeds[0], point)
                return found.average if found else None
        return None

    def sizes(self) -> list[int]:
        """The numbers of tasks that all presets were measured at."""
        return [
            size
            for size in sorted(self.variant.sizes)
            if all(self.at(method, size) for method in recipe.PRESETS)
        ]


def make(folder: Path) -> dict[str, Table]:
    """The tables by the names that the page knows them by."""
    found = {
        name: Found(folder, name)
        for name in untuned.VARIANTS
        if (folder / f"{name}.jsonl").exists()
    }
    if "full" not in found or not found["full"].sizes():
        return {}
    return {
        "presets": presets(found["full"]),
        "other sources": others(found),
        "presets, robustness": robustness(found),
        "auto": regrets(found),
        "prediction": prediction(found["full"], descriptions.read(folder / predicting.FILE)),
    }


def presets(found: Found) -> Table:
    """Every preset against the number of tasks, on test images."""
    sizes = found.sizes()
    seeds = f"{len(found.seeds)} seed{'s' * (len(found.seeds) > 1)}"
    rows = [[seeds, *(f"T = {size}" for size in sizes)]]
    for method in _order(found):
        cells = []
        for size in sizes:
            own = found.at(method, size)
            # Below all tasks each seed has other tasks, so the seeds' spread is the tasks'.
            groups = [[each] for each in own or ()] if size == len(found.names) else [own or ()]
            cells.append(str(paired.average(groups)) if own else "")
        rows.append([_name(method), *cells])
    base = [found.at("weight_average", size) for size in sizes]
    return [rows[0], ["base", *(_base(own) for own in base if own)], *rows[1:]]


def others(found: Mapping[str, Found]) -> Table:
    """Every preset on sources that were made otherwise, all tasks, beside the usual ones."""
    size = len(found["full"].names)
    rows = [["", *(TITLES[name] for name in found)]]
    for method in _order(found["full"]):
        means = [own.mean(method, size) for own in found.values()]
        rows.append([_name(method), *("" if mean is None else f"{mean:.3f}" for mean in means)])
    return rows


def robustness(found: Mapping[str, Found]) -> Table:
    """How far each preset falls: another scale, an uneven source, more tasks."""
    full, size = found["full"], len(found["full"].names)
    sizes = full.sizes()
    rows = [
        [
            "",
            "scale half",
            "scale one and a half",
            "one source longer",
            f"T = {sizes[0]} to {sizes[-1]}",
        ]
    ]
    for method in _order(full):
        middle = None if method == AUTO else full.off(method, 1.0)
        scaled = [
            ""
            if middle is None or (own := full.off(method, factor)) is None
            else f"{own - middle:+.3f}"
            for factor in untuned.OFF
        ]
        uneven = ""
        if "uneven" in found and (ours := found["uneven"].mean(method, size)) is not None:
            first = full.at(method, size)
            uneven = f"{ours - first[0].average:+.3f}" if first else ""
        ends = [full.mean(method, each) for each in (sizes[0], sizes[-1])]
        fall = "" if None in ends else f"{ends[1] - ends[0]:+.3f}"  # type: ignore[operator]
        rows.append([_name(method), *scaled, uneven, fall])
    return rows


def regrets(found: Mapping[str, Found]) -> Table:
    """How far the automatic method is below the best preset in hindsight."""
    rows = [["sources", "T", "auto took", "auto", "best preset", "best", "regret"]]
    for name, own in found.items():
        for size in own.sizes():
            means = {method: own.mean(method, size) for method in recipe.PRESETS}
            best = max(means, key=lambda method: means[method] or 0.0)
            mine = own.mean(AUTO, size)
            if mine is None:
                continue
            taken = {_of(own.settings(AUTO, size, seed), size) for seed in own.seeds}
            rows.append(
                [
                    *(TITLES[name], str(size), ", ".join(sorted(taken)), f"{mine:.3f}"),
                    *(_name(best), f"{means[best]:.3f}", f"{(means[best] or 0.0) - mine:+.3f}"),
                ]
            )
    return rows


def prediction(found: Found, measured: Mapping[str, predicting.Values]) -> Table:
    """Rank correlations of what was measured of the weights with how the tasks fare."""
    size = len(found.names)
    seeds = [seed for seed in found.seeds if str(seed) in measured]
    methods = list(measured[str(seeds[0])]) if seeds else []
    rows = [["", *map(_name, methods)]]
    for measure in (*predicting.MEASURES, BEFORE):
        cells = []
        for method in methods:
            merges = found.at(method, size) or []
            by_seed = [
                each for seed, each in zip(found.seeds, merges, strict=True) if seed in seeds
            ]
            right = [[each.normalized(task) for task in found.names] for each in by_seed]
            values = (
                [_bases(each) for each in by_seed]
                if measure == BEFORE
                else [measured[str(seed)][method][measure] for seed in seeds]
            )
            rank, chance = predicting.correlation(values, right)
            cells.append(f"{rank:+.2f} (p {chance:.2f})")
        rows.append([measure, *cells])
    return rows


BEFORE = "the base's own accuracy / the source's"
"""What is known before a merge, though not from the weights."""


TITLES = {
    "full": "all weights trained",
    "rank8": "LoRA, rank 8",
    "rank32": "LoRA, rank 32",
    "uneven": "one trained ten times as long",
}


def _of(settings: recipe.MergeRecipe | None, size: int) -> str:
    """The preset that a recipe is, but for its weights."""
    for method in recipe.PRESETS:
        preset = recipe.MergeRecipe.from_method(method, sources=size)
        if settings and preset.to_dict() | {"weights": []} == settings.to_dict() | {"weights": []}:
            return _name(method) + (", weighted" if settings.weights else "")
    return "another"


def _order(found: Found) -> Sequence[str]:
    """Methods, the best at all tasks first."""
    size = found.sizes()[-1]
    return sorted((*recipe.PRESETS, AUTO), key=lambda method: -(found.mean(method, size) or 0.0))


def _name(method: str) -> str:
    return method if method == AUTO else f"`{method}`"


def _base(measured: Sequence[measuring.Measured]) -> str:
    values = [statistics.fmean(_bases(each)) for each in measured]
    return f"{statistics.fmean(values):.3f}"


def _bases(measured: measuring.Measured) -> list[float]:
    """The base's accuracy on each task as a fraction of its source's."""
    return [
        (measured.base[task][0] / measured.base[task][1])
        / (measured.source[task][0] / measured.source[task][1])
        for task in measured.correct
    ]
