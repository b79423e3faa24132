"""The study's flow on stand-ins for the paper's setting: a tiny CLIP and three tasks of colours."""

import dataclasses
import json

import pytest
import stand_ins

import study.__main__ as program
from study import descriptions, flow, measuring, page, plan, settings, zoo

PAIRS, MISFIT, HOW = stand_ins.PAIRS, stand_ins.MISFIT, stand_ins.HOW


def stop_after(count):
    """Time for so many more steps."""
    left = iter([True] * count)
    return lambda: next(left, False)


@pytest.mark.slow
def test_a_study_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    setting, tmp_path, monkeypatch
):
    few = {
        name: dataclasses.replace(how, scales=how.scales[:2]) for name, how in plan.METHODS.items()
    }
    monkeypatch.setattr(plan, "METHODS", few)
    monkeypatch.setattr(plan, "DENSITIES", (0.14, 0.6))
    assert setting.name == "clip-tiny"
    assert setting.head == "zero-shot"
    setting = dataclasses.replace(setting, misfit_file=tmp_path / "misfit.yaml")
    folder, results = tmp_path / "work", tmp_path / "results"
    stops = 0
    for count in (0, 2, 5, 60, 10_000):  # in fine-tuning, and between measurements
        if flow.run(setting, folder, results, (0,), stop_after(count), "cpu"):
            break
        stops += 1
    assert stops == 4
    lines = (results / measuring.FILE).read_text().splitlines()
    merges = [json.loads(line) for line in lines if json.loads(line)["kind"] == "merge"]
    assert len({json.dumps({**row, "right": None}, sort_keys=True) for row in merges}) == len(
        merges
    )
    found = measuring.Results(results / measuring.FILE)
    opened = zoo.opened(setting.task_file, tuple(PAIRS), 0)
    assert list(opened.sources) == list(PAIRS)

    # Done before: nothing is fine-tuned or measured now, and a fresh measurement is the same.
    assert flow.run(setting, folder, results, (0,), stop_after(0), "cpu")
    point = plan.final({"ties": plan.METHODS["ties"].recipes(3)[0]}, [tuple(PAIRS)])[0]
    point = dataclasses.replace(point, split="validation", images=plan.VALIDATION_IMAGES)
    anew = measuring.Results(tmp_path / "anew.jsonl")
    with measuring.Gauge(opened, 0, anew, "cpu") as gauge:
        assert gauge.take([point, point], stop_after(2)) == 0
    assert anew.find(0, point) == found.find(0, point)

    told = page.write(results, tmp_path / "page.md", (0, 1, 2))
    assert told["seeds"] == [0]
    text = (tmp_path / "page.md").read_text()
    assert "| breadcrumbs, signed |" in text
    assert "| warm | 2 |" in text
    assert found.find(0, plan.final(plan.untuned(), [tuple(PAIRS)])[3]) is not None
    everyone = (*PAIRS, *MISFIT)
    with_it = [row for row in merges if len(row["members"]) == len(everyone)]
    assert len(with_it) == len(few)
    geometry = descriptions.read(results / descriptions.GEOMETRY)["0"]
    assert set(geometry) == set(everyone)
    assert all(0 < row["relative_norm"] < 1 for row in geometry.values())


@pytest.mark.slow
def test_a_setting_that_only_compares_the_methods_ends_with_all_tasks(setting, tmp_path):
    setting = dataclasses.replace(setting, whole=False)
    assert flow.run(setting, tmp_path / "work", tmp_path, (0,), stop_after(10_000), "cpu")
    lines = (tmp_path / measuring.FILE).read_text().splitlines()
    merges = [json.loads(line) for line in lines if json.loads(line)["kind"] == "merge"]
    assert {len(row["members"]) for row in merges} == {len(PAIRS)}
    assert {row["split"] for row in merges} == {"validation", "test"}


def test_no_time_is_exit_code_3_and_a_missing_base_1(setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "CLIP", HOW)
    common = ["--setting", "clip", "--architecture", setting.architecture, "--device", "cpu"]
    common += ["--tasks", str(setting.task_file), "--folder", str(tmp_path / "work")]
    common += ["--results", str(tmp_path / "results"), "--minutes", "0"]
    assert program.main([*common, "--checkpoint", str(tmp_path / "none.safetensors")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: ")
    assert error.endswith("none.safetensors: No such file or directory")
    assert program.main([*common, "--checkpoint", setting.checkpoint]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "setting": "clip-tiny",
        "done": False,
        "left_out": {},
        "measurements": 0,
    }
    tasks = descriptions.read(tmp_path / "results" / "clip-tiny" / descriptions.TASKS)
    assert tasks["odd"] == {"fits": True, "classes": 2, "train": 28, "validation": 4, "test": 8}
