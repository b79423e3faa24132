"""The study's plan, rule, figures and tables, on measurements made up here."""

import dataclasses
import json
import math

import pytest

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import scorecard, scoring
from study import choices, descriptions, flow, measuring, page, paired, plan, summary, tables

NAMES = tuple("abcdefghi")
BREADCRUMBS = recipe.MergeRecipe.from_method("breadcrumbs", sources=9)


def test_every_task_counts_alike_at_every_number_of_tasks():
    thirds, pairs = plan.thirds(NAMES), plan.pairs(NAMES)
    assert sorted(name for group in thirds for name in group) == sorted(NAMES)
    assert all(sum(name in group for group in pairs) == 2 for name in NAMES)
    assert [len(group) for group in (*thirds, *pairs)] == [3, 3, 3, 6, 6, 6]
    assert [len(group) for group in plan.thirds(NAMES[:8])] == [3, 3, 2]


def test_a_recipe_within_one_standard_error_that_is_nearer_to_the_published_is_taken():
    near, far = (dataclasses.replace(BREADCRUMBS, alpha=alpha) for alpha in (0.5, 2.0))
    level = {0.5: [0.80, 0.73, 0.86, 0.74], 2.0: [0.81, 0.73, 0.85, 0.75]}
    chosen = plan.choose(BREADCRUMBS, [far, near], lambda settings: level[settings.alpha])
    assert chosen == near
    # Nearness is to the method's own published values.
    other = dataclasses.replace(BREADCRUMBS, alpha=3.0)
    assert plan.choose(other, [far, near], lambda settings: level[settings.alpha]) == far
    apart = {0.5: [0.70, 0.61, 0.75, 0.64], 2.0: [0.81, 0.73, 0.85, 0.75]}
    assert plan.choose(BREADCRUMBS, [far, near], lambda settings: apart[settings.alpha]) == far


def test_one_score_alone_has_no_error_and_decides():
    near, far = (dataclasses.replace(BREADCRUMBS, alpha=alpha) for alpha in (0.3, 2.0))
    assert plan.choose(BREADCRUMBS, [near, far], lambda settings: [settings.alpha]) == far


def test_small_densities_get_larger_scales():
    found = plan.fine(dataclasses.replace(BREADCRUMBS, alpha=0.4))
    scales = {(s.density, s.gamma): s.alpha for s in reversed(found)}
    assert scales[0.14, 0.01] == 0.4
    assert scales[0.02, 0.01] == float(f"{0.4 * math.sqrt(7):.2g}")
    assert scales[0.9, 0.01] < scales[0.3, 0.01] < 0.4
    assert {s.density for s in found} == set(plan.DENSITIES)
    assert {s.gamma for s in found} == set(plan.GAMMAS)


def test_one_field_is_off_where_it_can_be():
    assert [(field, factor) for field, factor, _ in plan.off(BREADCRUMBS)] == [
        (field, factor) for field in ("density", "gamma", "alpha") for factor in (0.5, 1.5)
    ]
    arithmetic = recipe.MergeRecipe.from_method("task_arithmetic", sources=9, alpha=0.3)
    assert [(field, other.alpha) for field, _, other in plan.off(arithmetic)] == [
        ("alpha", 0.15),
        ("alpha", 0.45),
    ]
    wide = dataclasses.replace(BREADCRUMBS, density=0.8)
    assert ("density", 1.5) not in [(field, factor) for field, factor, _ in plan.off(wide)]


def accuracy(task, correct, total=100):
    return scoring.Accuracy(
        task, f"{task}/test", correct, total, "probe", "sha256:0", 64, 0.0, ("x", "y"), ()
    )


def card(members, merged, total=100):
    """Base 40, sources 80 of 100; the merge has `merged` of `total` right on each task."""
    return scorecard.Scorecard(
        tuple(
            scorecard.TaskScore(
                name, "s", accuracy(name, 40), accuracy(name, 80), accuracy(name, merged, total)
            )
            for name in members
        ),
        (),
    )


def test_a_measurement_is_found_again_and_only_itself(tmp_path):
    path = tmp_path / measuring.FILE
    results = measuring.Results(path)
    point = plan.validation(BREADCRUMBS, NAMES)
    assert results.find(0, point) is None
    results.add(0, point, card(NAMES, 60))
    again = measuring.Results(path)
    found = again.find(0, point)
    assert found is not None
    assert found.average == pytest.approx(0.75)
    assert found.base["a"] == (40, 100)
    assert len(again) == 1
    assert again.find(1, point) is None
    assert again.find(0, dataclasses.replace(point, split="test")) is None
    assert again.find(0, dataclasses.replace(point, members=NAMES[:3])) is None
    other = dataclasses.replace(BREADCRUMBS, gamma=0.0)
    assert again.find(0, dataclasses.replace(point, recipe=other)) is None
    again.add(0, dataclasses.replace(point, members=NAMES[:3]), card(NAMES[:3], 70))
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["base", "source", "merge", "merge"]  # base and sources only once


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / measuring.FILE
    results = measuring.Results(path)
    first, second = (
        plan.validation(dataclasses.replace(BREADCRUMBS, alpha=alpha), NAMES)
        for alpha in (0.2, 0.4)
    )
    results.add(0, first, card(NAMES, 60))
    before = path.read_text()
    results.add(0, second, card(NAMES, 70))
    path.write_text(path.read_text()[:-9])
    again = measuring.Results(path)
    assert again.find(0, first) == results.find(0, first)
    assert again.find(0, second) is None
    assert path.read_text() == before
    again.add(0, second, card(NAMES, 70))
    assert measuring.Results(path).find(0, second) == results.find(0, second)


def measured(merged, total=100):
    each = dict.fromkeys(NAMES, (80, total))
    return measuring.Measured(dict.fromkeys(NAMES, merged), dict.fromkeys(NAMES, total), each, each)


def test_an_interval_is_of_the_images_and_of_the_seeds_where_these_vary_more():
    one = paired.average([[measured(60)]])
    assert one.mean == pytest.approx(0.75)
    # sqrt((0.6·0.4/100/0.8² + 0.6²·0.8·0.2/100/0.8⁴) / 9) · 1.96
    assert one.half == pytest.approx(1.96 * math.sqrt((0.00375 + 0.00140625) / 9), rel=1e-3)
    alike = paired.average([[measured(60)]] * 3)
    assert alike.half == pytest.approx(one.half / math.sqrt(3))
    apart = paired.average([[measured(40)], [measured(60)], [measured(80)]])
    assert apart.half == pytest.approx(4.303 * 0.25 / math.sqrt(3), rel=1e-3)
    assert str(paired.Figure(0.75, 0.0123)) == "0.750 ± 0.012"


def test_a_difference_is_taken_in_pairs():
    better = [measured(64), measured(68)]
    found = paired.difference(better, [measured(60)] * 2)
    # 0.05 and 0.1 more, nine times each: 2.11 · stdev / √18
    assert found.mean == pytest.approx(0.075)
    assert found.half == pytest.approx(2.11 * 0.025 * math.sqrt(18 / 17) / math.sqrt(18), rel=1e-3)
    assert found.signed() == "+0.075 ± 0.013"


def quality(settings, size):
    """A made-up world: breadcrumbs are best at alpha 0.5, all others at 0.3."""
    masked = settings.gamma > 0 and settings.combine == "sum"
    off = abs(math.log(settings.alpha / (0.5 if masked else 0.3)))
    off += abs(math.log(settings.density / 0.14)) / 4
    plain = masked and settings.unit == "tensor" and settings.consensus == "none"
    return max(1, round((90 if plain else 80) - 20 * off / 3 - size))


@pytest.fixture
def world(tmp_path):
    """A setting's results, everything measured with one seed."""
    results = measuring.Results(tmp_path / measuring.FILE)
    evidence = choices.Evidence(results, NAMES, (0,))
    candidates, chosen = choices.Candidates(), flow.Chosen()
    for points in flow._stages(evidence, candidates, chosen):
        for point in points:
            if results.find(0, point) is None:
                right = quality(point.recipe, len(point.members))
                results.add(0, point, card(point.members, right))
    everyone = (*NAMES, "odd")
    for point in plan.final(chosen.largest, [everyone]):
        results.add(0, point, card(everyone, quality(point.recipe, 20)))
    sizes = {"classes": 2, "train": 9, "validation": 9, "test": 9}
    about = {name: {"fits": name in NAMES, **sizes} for name in everyone}
    (tmp_path / descriptions.TASKS).write_text(json.dumps(about))
    rows = {
        name: {"relative_norm": 0.1 + n, "cosine": 0.2, "sign_conflict": 0.5, "overlap": 0.2}
        for n, name in enumerate(everyone)
    }
    (tmp_path / descriptions.GEOMETRY).write_text(json.dumps({"0": rows}))
    return tmp_path


def test_the_stages_find_what_is_best(world):
    found = summary.Summary(world, (0,))
    assert found.chosen.largest["breadcrumbs"].alpha == 0.5
    assert found.chosen.largest["breadcrumbs"].density == 0.14
    assert found.chosen.largest["task_arithmetic"].alpha == 0.3
    assert found.chosen.largest["breadcrumbs_row"].unit == "row"
    assert found.chosen.defaults["breadcrumbs"].alpha == 0.5
    assert set(found.chosen.smallest) == set(plan.METHODS)


def test_tables_are_written_between_their_marks_and_the_rest_is_left(world):
    target = world / "page.md"
    target.write_text("# Mine\n\n<!-- table: main -->\nold\n<!-- end -->\nafter\n")
    told = page.write(world, target, (0, 1))  # seed 1 was never measured
    text = target.read_text()
    assert told["seeds"] == [0]
    assert text.startswith("# Mine\n\n<!-- table: main -->\n|  | density |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| breadcrumbs | 0.14 | 0.01 | 0.5 | 1.012 ± " in text
    assert "| base |  |  |  | 0.500 ± " in text
    assert set(told["pictures"]) == {
        "heat_map.png",
        "lines.png",
        "robustness.png",
        "task_counts.png",
    }
    assert (world / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    page.write(world, target, (0, 1))
    assert target.read_text() == text


def test_every_table_of_a_page_that_is_not_there_yet(world):
    target = world / "new.md"
    page.write(world, target, (0,))
    text = target.read_text()
    for cells in (
        "| a | 2 | 9 | 9 | 0.400 (0.309–0.498) | 0.800 (0.711–0.867) |",
        "| | T = 3 | T = 6 | T = 9 | T = 9, chosen there |",
        "| breadcrumbs | alpha | ",
        "| source | ‖τ‖ / ‖θ‖ | mean cosine | sign conflict | normalized accuracy |",
    ):
        assert cells.replace("| |", "|  |") in text


def test_a_misfit_is_told_apart_from_what_it_does_to_the_others(world):
    found = summary.Summary(world, (0,))
    assert found.names == NAMES
    rows = {row[0]: row[1:] for row in tables.misfit(found)[1:]}
    # 81 of 100 without and 70 with it, of 80 that each source has right.
    assert rows["breadcrumbs"][0].startswith("1.012 ±")
    assert rows["breadcrumbs"][1].startswith("0.875 ±")
    assert rows["breadcrumbs"][2] == "0.875"
    assert set(rows) == {"base", *tables.NAMES.values()}
    assert rows["base"][2] == "0.500"
    assert "odd" in [row[0] for row in tables.geometry(found)]
    # Without the misfit's measurements there is no such table.
    lines = [
        line for line in (world / measuring.FILE).read_text().splitlines() if "odd" not in line
    ]
    (world / measuring.FILE).write_text("\n".join([*lines, ""]))
    assert tables.misfit(summary.Summary(world, (0,)))[1:] == []


def test_methods_as_published_are_measured_without_a_choice(world):
    rows = {row[0]: row[1:] for row in tables.untuned(summary.Summary(world, (0,)))[1:]}
    assert rows["breadcrumbs"][:3] == ["0.14", "0.01", "0.3"]
    assert rows["TIES"][:3] == ["0.2", "0", "1"]
    assert rows["weight average"][:3] == ["", "", "1/T"]
    assert all(row[3] and row[4] for row in rows.values())


def test_two_sizes_stand_side_by_side_as_far_as_they_are_measured(world, tmp_path):
    target = world / "page.md"
    target.write_text("<!-- table: sizes -->\n<!-- end -->\n")
    page.write(world, target, (0,), smaller=tmp_path / "none")
    assert "12 blocks" not in target.read_text()
    page.write(world, target, (0,), smaller=world)
    row = next(line for line in target.read_text().splitlines() if line.startswith("| TIES |"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:2] == cells[2:]
    half = tmp_path / "half"
    half.mkdir()
    (half / descriptions.TASKS).write_text((world / descriptions.TASKS).read_text())
    lines = (world / measuring.FILE).read_text().splitlines(keepends=True)
    (half / measuring.FILE).write_text("".join(lines[:10]))
    page.write(world, target, (0,), smaller=half)
    row = next(line for line in target.read_text().splitlines() if line.startswith("| TIES |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [*cells[:2], "", ""]


def test_the_middle_of_a_study_shows_what_is_best_so_far(world):
    lines = (world / measuring.FILE).read_text().splitlines(keepends=True)
    coarse = len(dict.fromkeys(plan.coarse(NAMES)))
    (world / measuring.FILE).write_text("".join(lines[: 2 + coarse]))
    told = page.write(world, world / "page.md", (0,))
    assert told["measurements"] == coarse
    assert told["pictures"] == ["lines.png", "robustness.png"]  # one density, no heat map
    text = (world / "page.md").read_text()
    assert "| breadcrumbs | 0.14 | 0.01 | 0.5 | 1.012 ± 0.046 |  |  |" in text


def test_half_a_study_has_no_choice_yet(world):
    lines = (world / measuring.FILE).read_text().splitlines(keepends=True)
    (world / measuring.FILE).write_text("".join(lines[:10]))
    assert page.write(world, world / "page.md", (0,)) == {"measurements": 8}
    assert not (world / "page.md").exists()
