"""The study's second part on stand-ins: four tasks of colours, stopped and gone on with."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.sources import training
from study import descriptions, measuring, predicting, untuned, untuned_tables


def test_groups_turn_with_the_seed_and_keep_their_order():
    names = tuple("abcdefghi")
    assert untuned.group(names, 9, 2) == names
    assert untuned.group(names, 3, 0) == ("a", "b", "c")
    assert untuned.group(names, 3, 1) == ("d", "e", "f")
    assert untuned.group(names, 4, 2) == ("a", "g", "h", "i")


def test_sources_of_a_variant_are_trained_as_it_says():
    usual = training.TrainingSettings(steps=100)
    uneven, low = untuned.VARIANTS["uneven"], untuned.VARIANTS["rank8"]
    assert uneven.settings(usual, 0).steps == 1000
    assert uneven.settings(usual, 1) == usual
    assert (uneven.name(0), uneven.name(1)) == ("long-", "")
    assert low.settings(usual, 5).rank == 8
    assert low.name(5) == "rank8-"


def test_a_rank_correlation_is_held_against_shuffled_tasks():
    generator = np.random.default_rng(1)
    measured, right = generator.normal(size=(2, 3, 9))
    found, chance = predicting.correlation(measured, right)
    expected = [
        stats.spearmanr(one, other).statistic for one, other in zip(measured, right, strict=True)
    ]
    assert found == pytest.approx(np.mean(expected))
    assert 0.01 < chance < 1
    assert predicting.correlation(measured, measured) == (pytest.approx(1), 0)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped_and_fills_the_tables(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(
        untuned,
        "VARIANTS",
        {
            "full": untuned.Variant(seeds=(0, 1), sizes=(3, 2)),
            "rank8": untuned.Variant(rank=2, sizes=(3,)),
        },
    )
    monkeypatch.setattr(
        recipe,
        "PRESETS",
        {
            name: recipe.PRESETS[name]
            for name in ("weight_average", "task_arithmetic", "tsv_m", "tsv_lines", "lora")
        },
    )
    folder, results = tmp_path / "work", tmp_path / "results"
    for count in (2, 3, 6, 10_000):
        left = iter([True] * count)
        done = untuned.run(setting, folder, results, lambda: next(left, False), "cpu")  # noqa: B023
    assert done
    lines = {path.name: path.read_text() for path in results.glob("*.jsonl")}
    assert untuned.run(setting, folder, results, lambda: False, "cpu")
    assert lines == {path.name: path.read_text() for path in results.glob("*.jsonl")}

    made = untuned_tables.make(results)
    head, base, *rows = made["presets"]
    assert head == ["2 seeds", "T = 2", "T = 3"]
    assert base[0] == "base"
    assert {row[0] for row in rows} == {
        *("`weight_average`", "`task_arithmetic`", "`tsv_m`", "`tsv_lines`", "`lora`", "auto")
    }
    found = measuring.Results(results / "full.jsonl")
    settings_of = recipe.MergeRecipe.from_method("tsv_m", sources=3)
    values = [
        found.find(seed, untuned.point(("warm", "cold", "odd"), 3, seed, settings_of)).average
        for seed in (0, 1)
    ]
    (tsv,) = [row for row in rows if row[0] == "`tsv_m`"]
    assert tsv[2].startswith(f"{sum(values) / 2:.3f} ±")
    assert made["other sources"][0] == ["", "all weights trained", "LoRA, rank 8"]
    assert len(made["auto"]) == 1 + 2 + 1
    assert all(len(row) == 5 for row in made["presets, robustness"])
    head, *rows = made["prediction"]
    assert head == ["", "`task_arithmetic`", "`tsv_lines`"]
    assert [row[0] for row in rows][:-1] == list(predicting.MEASURES)
    measured = descriptions.read(results / predicting.FILE)["0"]["task_arithmetic"]
    assert all(0 < length < 1 for length in measured["length"])
    assert all(0 < share < 1.5 for share in measured["response"])
    assert dataclasses.asdict(untuned.VARIANTS["rank8"])["rank"] == 2
