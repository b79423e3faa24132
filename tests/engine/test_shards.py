"""A merge in shards: by any workers, in any order, after any stop, the same weights."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import drawn
import pytest
import torch
import zoos
from hypothesis import HealthCheck, given, settings
from shard_cases import RECIPES, SHARD, states

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, files, merging
from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend
from mlflow_breadcrumbs.engine.shards import budgets, finishing, local, notes, plans, working
from mlflow_breadcrumbs.support import descriptors


@pytest.fixture
def opened(tmp_path):
    return zoos.opened(states(), tmp_path)


def planned(opened, made, output, **options):
    return plans.make(opened[0], opened[1:], made, output, max_shard_size=SHARD, **options)


def one_file(opened, made, folder):
    """The merge in one go."""
    return merging.merge(opened[0], opened[1:], made, folder / "whole.safetensors", verify=True)


def assert_same(result, whole):
    """All that is known of two merges, but for where and how long."""
    for field in dataclasses.fields(result):
        if field.name not in ("output", "seconds", "statistics"):
            assert getattr(result, field.name) == getattr(whole, field.name), field.name
    assert result.statistics == whole.statistics
    assert checkpoints.weights_digest(result.output) == whole.weights_digest


@pytest.mark.parametrize("name", RECIPES)
def test_shards_in_any_order_make_the_same_weights(opened, tmp_path, name):
    made, output = RECIPES[name], tmp_path / "out.safetensors"
    whole = one_file(opened, made, tmp_path)
    plan = planned(opened, made, output)
    assert [len(shard.tensors) for shard in plan.shards] == [1, 1, 2, 1, 3]
    for number in reversed(range(1, len(plan.shards) + 1)):
        note = working.work(plan, number, threads=1 + number % 2)
        assert note.nbytes == plan.shards[number - 1].bytes_written
    working.work(plan, 2)  # again
    assert working.missing(plan) == []
    assert_same(finishing.finish(plan), whole)
    assert sorted(file.name for file in tmp_path.glob("*out*")) == [
        *(shard.file for shard in plan.shards),
        "out.safetensors.index.json",
    ]
    assert not plan.staging.path.exists()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=drawn.merges())
def test_random_merges_shard_by_shard(tmp_path_factory, case):
    drawn_states, made, work = case
    folder = tmp_path_factory.mktemp("drawn")
    opened = zoos.opened(drawn_states, folder)
    options = {"max_norm_ratio": None, "verify": True}
    results = []
    for merge, name in ((merging.merge, "whole"), (local.merge, "shards")):
        if merge is local.merge and not plans.divisible(opened[0], made):
            return
        try:
            more = {"max_shard_size": work["shard"]} if merge is local.merge else {}
            output = folder / f"{name}.safetensors"
            results.append(merge(opened[0], opened[1:], made, output, **options, **more))
        except errors.MergeError as error:
            results.append(str(error))
    whole, ours = results
    assert isinstance(whole, str) == isinstance(ours, str)
    if not isinstance(whole, str):
        assert ours.weights_digest == whole.weights_digest
        assert (ours.statistics, ours.touched) == (whole.statistics, whole.touched)


def test_other_backends_do_shards_too(opened, tmp_path):
    made = RECIPES["tensor"]
    whole = one_file(opened, made, tmp_path)
    plan = planned(opened, made, tmp_path / "out.safetensors")
    for number in range(1, len(plan.shards) + 1):
        backend = reference.Reference() if number % 2 else cpu_backend.Cpu(2)
        assert working.work(plan, number, backend=backend).backend == backend.name
    assert finishing.finish(plan).weights_digest == whole.weights_digest


def test_a_plan_is_small_and_survives_its_file(opened, tmp_path):
    plan = planned(opened, RECIPES["model"], tmp_path / "out.safetensors")
    plan.save(tmp_path / "plan.json")
    again = plans.read(tmp_path / "plan.json")
    assert (again, again.digest) == (plan, plan.digest)
    assert plan.bytes_read == sum(checkpoint.nbytes for checkpoint in opened)
    assert plan.bytes_written >= opened[0].nbytes
    assert (tmp_path / "plan.json").stat().st_size < 8000


def test_a_merge_that_was_killed_goes_on(opened, tmp_path, monkeypatch):
    """What a stopped call has done is not done again; the same call ends with the same weights."""
    made, output = RECIPES["model"], tmp_path / "out.safetensors"
    whole = one_file(opened, made, tmp_path)
    work_on, calls = working.work_on, []

    def stopping(plan, job, number, *rest, **options):
        if number == 3 and len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(number)
        return work_on(plan, job, number, *rest, **options)

    monkeypatch.setattr(working, "work_on", stopping)
    arguments = (opened[0], opened[1:], made, output)
    with pytest.raises(KeyboardInterrupt):
        local.merge(*arguments, max_shard_size=SHARD)
    assert not list(tmp_path.glob("out*"))
    calls.append(0)
    result = local.merge(*arguments, max_shard_size=SHARD)
    assert_same(result, whole)
    assert calls == [1, 2, 0, *range(3, 6)]


WORKER = """
import os, signal, sys
from mlflow_breadcrumbs.engine.shards import plans, working
from mlflow_breadcrumbs.engine import writing
plan = plans.read(sys.argv[1])
if sys.argv[3:]:
    announce = writing.ShardWriter.announce
    def die(self, name, digest):
        announce(self, name, digest)
        os.kill(os.getpid(), signal.SIGKILL)
    writing.ShardWriter.announce = die
working.work(plan, int(sys.argv[2]), threads=1)
"""


def start(plan_file, number, *how):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(plan_file), str(number), *how])


def test_workers_in_processes_of_which_one_is_killed(opened, tmp_path):
    made = RECIPES["model"]
    whole = one_file(opened, made, tmp_path)
    plan = planned(opened, made, tmp_path / "out.safetensors")
    plan.save(tmp_path / "plan.json")
    killed = start(tmp_path / "plan.json", 2, "killed")
    others = [start(tmp_path / "plan.json", n) for n in range(1, len(plan.shards) + 1) if n != 2]
    twice = start(tmp_path / "plan.json", 1)
    assert killed.wait() == -signal.SIGKILL
    assert [process.wait() for process in (*others, twice)] == [0] * len(plan.shards)
    assert working.missing(plan) == [2]
    with pytest.raises(errors.MergeError, match=r"1 shard of \d is not done: 2\. Do it"):
        finishing.finish(plan)
    working.work(plan, 2)
    assert_same(finishing.finish(plan), whole)


def half_finished(plan, monkeypatch):
    """A finish that is stopped after it has moved two files."""
    replace, moved = os.replace, []

    def stopping(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        if str(target).endswith(".safetensors"):
            moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            finishing.finish(plan)


def test_a_finish_that_was_stopped_is_finished(opened, tmp_path, monkeypatch):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    for number in range(1, len(plan.shards) + 1):
        working.work(plan, number)
    half_finished(plan, monkeypatch)
    assert not (tmp_path / "out.safetensors.index.json").exists()
    result = finishing.finish(plan)
    assert checkpoints.weights_digest(result.output) == result.weights_digest
    with pytest.raises(errors.CheckpointError, match=r"index\.json exists; name another file"):
        finishing.finish(plan)


def test_inputs_that_changed_since_the_plan_are_refused(opened, tmp_path):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    source = opened[2].files[0]
    times = os.stat(source)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(errors.IntegrityError, match=r"is not the file that the merge was planned"):
        working.work(plan, 1)
    assert not list(tmp_path.glob("*out*"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    working.work(plan, 1)


def test_digests_and_norms_are_checked_at_the_end(opened, tmp_path):
    made = RECIPES["tensor"]
    whole = one_file(opened, made, tmp_path)
    expected = [whole.base_digest, *whole.source_digests]
    wrong = [*expected[:-1], "sha256:" + "0" * 64]
    for given_digests, ratio, fault, words in (
        (wrong, None, errors.IntegrityError, "but sha256:0000"),
        (expected, 1e-4, errors.MergeError, "is farther from the base than fine-tuning goes"),
    ):
        output = tmp_path / "out.safetensors"
        plan = planned(opened, made, output, expected=given_digests, max_norm_ratio=ratio)
        for number in range(1, len(plan.shards) + 1):
            working.work(plan, number)
        with pytest.raises(fault, match=words):
            finishing.finish(plan)
        assert not list(tmp_path.glob("out*"))
        notes.clear(plan)
    with pytest.raises(errors.MergeError, match="is farther from the base"):
        local.merge(opened[0], opened[1:], made, output, max_shard_size=SHARD, max_norm_ratio=1e-4)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-20], "is not JSON"),
        (lambda text: "[]", r"is no plan of a merge that this release reads"),
        (lambda text: text.replace("plan:v1", "plan:v9"), r"is no plan of a merge"),
        (lambda text: text.replace('"max_shard_size": 6000', '"max_shard_size": "x"'), "damaged"),
    ],
)
def test_a_damaged_plan_is_one_message(opened, tmp_path, damage, words):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    plan.save(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(damage((tmp_path / "plan.json").read_text()))
    with pytest.raises(errors.MergeError, match=words):
        plans.read(tmp_path / "plan.json")


@pytest.mark.parametrize("change", ["moved", "missing", "fewer", "no cuts"])
def test_a_plan_that_was_changed_is_refused(opened, tmp_path, change):
    plan = planned(opened, RECIPES["model"], tmp_path / "out.safetensors")
    first, second, *rest = plan.shards
    shards = {
        "moved": (second, first, *rest),
        "missing": (dataclasses.replace(first, tensors=()), second, *rest),
        "fewer": plan.shards[:-1],
    }
    changed = dataclasses.replace(plan, shards=shards.get(change, plan.shards))
    if change == "no cuts":
        changed = dataclasses.replace(plan, cuts=())
    for call in (lambda: working.work(changed, 1), lambda: finishing.finish(changed)):
        with pytest.raises(errors.MergeError, match="was changed: its shards or cuts are not"):
            call()
    assert not list(tmp_path.glob("*out*"))


def test_notes_that_are_damaged_or_of_another_merge(opened, tmp_path):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    note = working.work(plan, 1)
    file = plan.staging.path / notes.name(plan, 1)
    whole = json.loads(file.read_text())
    for change, words in (
        ({"plan": "sha256:1"}, "is not of this merge; remove the folder"),
        ({"seconds": "long"}, "is a damaged note of a shard: seconds"),
    ):
        file.write_text(json.dumps(whole | change))
        with pytest.raises(errors.MergeError, match=words):
            working.missing(plan)
    file.write_text(json.dumps(whole))
    assert 1 not in working.missing(plan)
    (plan.staging.path / note.file).unlink()
    assert 1 in working.missing(plan)
    for number in (0, 99):
        with pytest.raises(errors.MergeError, match=f"there is no shard {number}: the plan has"):
            working.work(plan, number)


def test_masks_over_a_float64_model_are_found_in_one_go(tmp_path):
    opened = zoos.opened(states(dtype=torch.float64), tmp_path)
    with pytest.raises(errors.MergeError, match="can't be merged shard by shard"):
        planned(opened, RECIPES["model"], tmp_path / "out.safetensors")
    paths = [checkpoint.files[0] for checkpoint in opened]
    whole = one_file(opened, RECIPES["model"], tmp_path)
    result = files.merge_files(
        paths[0], paths[1:], RECIPES["model"], tmp_path / "o.safetensors", max_shard_size=SHARD
    )
    assert result.weights_digest == whole.weights_digest


def test_two_processes_do_not_write_one_output(opened, tmp_path):
    made, output = RECIPES["tensor"], tmp_path / "out.safetensors"
    plan = planned(opened, made, output, verify=False)
    with (
        local._held(plan),
        pytest.raises(errors.CheckpointError, match="another process is writing"),
    ):
        local.merge(opened[0], opened[1:], made, output, max_shard_size=SHARD, verify=False)
    assert local.merge(opened[0], opened[1:], made, output, max_shard_size=SHARD).output.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_to(opened, tmp_path):
    target = tmp_path / "closed"
    target.mkdir(mode=0o500)
    with pytest.raises(errors.CheckpointError, match="cannot write"):
        local.merge(opened[0], opened[1:], RECIPES["tensor"], target / "o.safetensors")


def test_a_tensor_is_merged_before_its_pages_have_left_the_cache(opened, tmp_path, monkeypatch):
    """No more than one tensor is read ahead of the one that is merged."""
    seen = []
    read, merge = cpu_backend._CpuRun._read, cpu_backend._CpuRun._merge_blocks
    monkeypatch.setattr(cpu_backend, "LARGE", 100)
    monkeypatch.setattr(
        cpu_backend._CpuRun,
        "_read",
        lambda run, *at: seen.append(("read", at[0])) or read(run, *at),
    )
    monkeypatch.setattr(
        cpu_backend._CpuRun,
        "_merge_blocks",
        lambda run, *at: seen.append(("merge", at[0])) or merge(run, *at),
    )
    output = tmp_path / "out.safetensors"
    merging.merge(opened[0], opened[1:], RECIPES["tensor"], output, backend=cpu_backend.Cpu(1))
    large = [name for name in opened[0].names if opened[0].info(name).numel >= 100]
    merged = [name for what, name in seen if what == "merge" and name in large]
    assert len(merged) == 5
    for number, name in enumerate(merged[2:]):
        assert seen.index(("merge", merged[number])) < seen.index(("read", name))
    assert [seen.count(("read", name)) for name in merged] == [len(opened)] * 5


def test_a_file_that_was_replaced_while_it_was_opened(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    first = descriptors.open_to_read(tmp_path / "one")
    try:
        os.close(descriptors.open_again(tmp_path / "one", first))
        with pytest.raises(OSError, match="the file was replaced"):
            descriptors.open_again(tmp_path / "two", first)
    finally:
        os.close(first)


def test_another_output_that_appeared_after_a_stop_is_not_touched(opened, tmp_path, monkeypatch):
    output = tmp_path / "out.safetensors"
    first, second = (
        planned(opened, dataclasses.replace(RECIPES["tensor"], alpha=alpha), output)
        for alpha in (0.3, 0.6)
    )
    for plan in (first, second):
        list(working.work_all(plan, range(1, 6)))
    half_finished(first, monkeypatch)
    other = finishing.finish(second, overwrite=True)
    with pytest.raises(errors.CheckpointError, match="exists; name another file"):
        finishing.finish(first)
    assert checkpoints.weights_digest(other.output) == other.weights_digest
    assert working.missing(first) == [2]  # the integers are the same in both
    list(working.work_all(first, working.missing(first)))
    result = finishing.finish(first, overwrite=True)
    assert (
        checkpoints.weights_digest(result.output) == result.weights_digest != other.weights_digest
    )


def test_a_shard_that_was_changed_is_found_where_asked(opened, tmp_path):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    done = list(working.work_all(plan, range(1, 6)))
    file = plan.staging.path / done[1].file
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(errors.IntegrityError, match="shard 2 has to be done again"):
        finishing.finish(plan, verify=True)
    working.work(plan, 2)
    assert finishing.finish(plan, verify=True).output.exists()


def test_an_input_is_no_output(tmp_path, opened):
    base, *sources = opened
    made = RECIPES["tensor"]
    local.merge(base, sources, made, tmp_path / "b.safetensors", max_shard_size=SHARD)
    index = tmp_path / "b.safetensors.index.json"
    before = checkpoints.weights_digest(index)
    with checkpoints.Checkpoint.open(index) as sharded:
        for merge in (local.merge, merging.merge):
            for size in (SHARD, None):
                with pytest.raises(errors.CheckpointError, match="which is read: after a stop"):
                    merge(
                        *(sharded, sources, made, tmp_path / "b.safetensors"),
                        max_shard_size=size,
                        overwrite=True,
                    )
    assert checkpoints.weights_digest(index) == before
    paths = [checkpoint.files[0] for checkpoint in opened]
    files.merge_files(paths[0], paths[1:], made, paths[0], overwrite=True)  # one file for one


def test_what_stopped_merges_left_goes_with_the_next_output(opened, tmp_path, monkeypatch):
    output = tmp_path / "out.safetensors"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "finish_on", stop)
        with pytest.raises(KeyboardInterrupt):
            local.merge(opened[0], opened[1:], RECIPES["row"], output, max_shard_size=SHARD)
    workers = planned(opened, RECIPES["model"], output)
    working.work(workers, 1)
    assert len(list(tmp_path.glob(".out*"))) == 2
    local.merge(opened[0], opened[1:], RECIPES["tensor"], output, max_shard_size=SHARD)
    assert list(tmp_path.glob(".out*")) == [workers.staging.path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_norm_ratio": -1.0}, "max_norm_ratio is -1.0; it must be above 0"),
        ({"output": "out.safetensors"}, "its output 'out.safetensors' is no path from the root"),
        ({"output": "/out.bin"}, r"must end in \.safetensors"),
    ],
)
def test_what_a_plan_may_not_say(opened, tmp_path, change, words):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    with pytest.raises(errors.BreadcrumbsError, match=words):
        plans.parse(plan.to_dict() | change, "the plan")


def test_a_note_that_lacks_something(opened, tmp_path):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    working.work(plan, 1)
    whole = json.loads((plan.staging.path / notes.name(plan, 1)).read_text())
    for change in ({"hexdigests": {}}, {"inputs": [{}]}, {"touched": []}, {"file": "../x"}):
        (plan.staging.path / notes.name(plan, 1)).write_text(json.dumps(whole | change))
        with pytest.raises(errors.MergeError, match="it lacks tensors, inputs or statistics"):
            working.missing(plan)


def test_more_shards_than_can_be_read_are_refused(tmp_path):
    many = [{f"t{n}": torch.zeros(2) + k for n in range(600)} for k in range(2)]
    opened = zoos.opened(many, tmp_path)
    with pytest.raises(errors.CheckpointError, match="would be 600 files, 500 is the most"):
        plans.make(
            *(opened[0], opened[1:], RECIPES["tensor"], tmp_path / "o.safetensors"),
            max_shard_size=1,
        )


def test_a_plan_replaces_plans_alone(opened, tmp_path):
    plan = planned(opened, RECIPES["tensor"], tmp_path / "out.safetensors")
    plan.save(tmp_path / "new" / "plan.json")
    plan.save(tmp_path / "new" / "plan.json")
    before = opened[1].files[0].read_bytes()
    with pytest.raises(errors.CheckpointError, match="exists and is no plan"):
        plan.save(opened[1].files[0])
    assert opened[1].files[0].read_bytes() == before


def test_what_a_merge_will_take(opened, tmp_path):
    made = RECIPES["tensor"]
    job = merging.plan(opened[0], opened[1:], made)
    found = budgets.of(job, cpu_backend.Cpu(2), max_shard_size=SHARD)
    plan = planned(opened, made, tmp_path / "out.safetensors")
    assert (found.bytes_read, found.bytes_written, found.files) == (
        plan.bytes_read,
        plan.bytes_written,
        len(plan.shards),
    )
    assert found.scratch == 0
    assert 0 < found.measured <= found.bytes_read
    assert found.seconds > 0
    assert found.memory > 2 * 16 * (1 << 22)
    whole = budgets.of(merging.plan(opened[0], opened[1:], RECIPES["model"]), cpu_backend.Cpu(2))
    assert whole.files == 1
    assert whole.bytes_read > 4 * found.bytes_read / 2, "its cuts cost four looks at every source"
    wide = budgets.of(merging.plan(opened[0], opened[1:], RECIPES["tsv"]), cpu_backend.Cpu(2))
    assert wide.memory > found.memory
    assert dict(found.lines())["to write"].endswith(f"{len(plan.shards)} files")
    assert list(tmp_path.glob("*out*")) == []
