"""Checkpoints in object stores: the same weights, each byte once, little on this machine's disk."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import weakref

import object_stores
import pytest
import torch
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import checkpoints, files, merging, recipe, stored_bytes, writing
from mlflow_breadcrumbs.engine.remote import ahead, fetching, opening, stores
from mlflow_breadcrumbs.engine.shards import places

SHARD = 6000
RECIPES = {
    "tensor": recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.4),
    "row": recipe.MergeRecipe(density=0.2, gamma=0.05, unit="row", consensus="mass"),
    "model": recipe.MergeRecipe(density=0.2, gamma=0.01, unit="model", weights=(1, 0.5)),
    "tsv": recipe.MergeRecipe.from_method("tsv_m", sources=2),
    "covariance": recipe.MergeRecipe.from_method("actmat", sources=2),
}


def states():
    """A base and two sources, small and large tensors, and integers."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"a.weight": (60, 50), "b.weight": (30, 20), "c.bias": (30,), "d.scale": ()}
    shapes |= {f"block.{i}.weight": (40, 40 + i) for i in range(4)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = [base]
    for _ in range(2):
        found.append(
            {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        )
    return [state | {"positions": torch.arange(50)} for state in found]


@pytest.fixture
def opened(tmp_path):
    return zoos.opened(states(), tmp_path)


@pytest.fixture
def addresses(opened, object_store, request):
    """The same checkpoints in the store: the base in shards, the sources in a file each."""
    folder = f"inputs-{request.node.name}"
    inside = opened[0].files[0].parent / "sharded"
    inside.mkdir()
    base = checkpoints.Checkpoint.open(opened[0].files[0])
    infos = {name: base.info(name) for name in base.names}
    with writing.CheckpointWriter(inside / "base.safetensors", infos, max_shard_size=9000) as out:
        for name in base.names:
            out.write(name, base.tensor(name))
    for file in out.output.parent.iterdir():
        object_store.put(file, f"{folder}/base")
    return [f"s3://models/{folder}/base"] + [
        object_store.put(checkpoint.files[0], folder) for checkpoint in opened[1:]
    ]


class Counting:
    """A folder that counts what is read of it."""

    ranged = True

    def __init__(self, folder):
        self.folder, self.address, self.nbytes = folder, folder.address, 0
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self.folder, name)

    def read(self, name, start, stop):
        with self._lock:
            self.nbytes += stop - start
        return self.folder.read(name, start, stop)


def merged(opened, made, output, **options):
    return merging.merge(opened[0], opened[1:], made, output, verify=True, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_weights_as_from_files(opened, addresses, tmp_path, name):
    made = RECIPES[name]
    whole = merged(opened, made, tmp_path / "whole.safetensors")
    result = files.merge_files(
        addresses[0], addresses[1:], made, tmp_path / "out.safetensors", verify=True
    )
    for field in dataclasses.fields(result):
        if field.name not in ("output", "seconds"):
            assert getattr(result, field.name) == getattr(whole, field.name), field.name


@pytest.mark.parametrize("name", ["tensor", "row", "tsv"])
def test_each_byte_is_fetched_once(opened, addresses, tmp_path, name):
    places = [stores.of(address) for address in addresses]
    counting = [Counting(place.folder) for place in places]
    inputs = [
        checkpoints.Checkpoint.open(stores.Target(folder, place.file))
        for folder, place in zip(counting, places, strict=True)
    ]
    headers = sum(folder.nbytes for folder in counting)
    merged(inputs, RECIPES[name], tmp_path / "out.safetensors")
    fetched = sum(folder.nbytes for folder in counting) - headers
    assert fetched == sum(checkpoint.nbytes for checkpoint in inputs)


def test_little_is_held_at_once(opened, addresses, tmp_path, monkeypatch):
    """Every segment that comes is counted until nobody has it any more."""
    held, most, lock = set(), [0], threading.Lock()
    made = stored_bytes.NamelessFile.__init__

    def counted(self, nbytes):
        made(self, nbytes)
        with lock:
            held.add((id(self), nbytes))
            most[0] = max(most[0], sum(size for _, size in held))
        weakref.finalize(self, held.discard, (id(self), nbytes))

    monkeypatch.setattr(stored_bytes.NamelessFile, "__init__", counted)
    monkeypatch.setattr(fetching, "PIECE", 4000)
    monkeypatch.setattr(ahead, "LIMIT", 20_000)
    inputs = [checkpoints.Checkpoint.open(address) for address in addresses]
    total = sum(checkpoint.nbytes for checkpoint in inputs)
    merged(inputs, RECIPES["tensor"], tmp_path / "out.safetensors")
    assert 0 < most[0] < 0.7 * total
    assert sum(size for _, size in held) <= 3 * 2 * 4000, "all but small neighbours has gone"


@pytest.mark.parametrize("name", ["tensor", "model"])
def test_shards_go_up_and_become_a_checkpoint(opened, addresses, object_store, tmp_path, name):
    whole = merged(opened, RECIPES[name], tmp_path / "whole.safetensors")
    output = f"s3://models/out-{name}/merged.safetensors"
    arguments = (addresses[0], addresses[1:], RECIPES[name], output)
    result = files.merge_files(*arguments, verify=True, max_shard_size=SHARD)
    assert result.output == f"s3://models/out-{name}/merged.safetensors.index.json"
    assert result.weights_digest == checkpoints.weights_digest(result.output)
    assert result.weights_digest == whole.weights_digest
    names = object_store.names(f"out-{name}/")
    assert len(names) == len(checkpoints.Checkpoint.open(result.output).file_states) + 1
    assert all(file.startswith("merged") for file in names), "nothing else is left"
    with pytest.raises(errors.CheckpointError, match=r"index\.json exists; name another file or"):
        files.merge_files(*arguments, max_shard_size=SHARD)
    again = files.merge_files(*arguments, overwrite=True, verify=True)
    assert again.weights_digest == whole.weights_digest
    assert object_store.names(f"out-{name}/") == ["merged.safetensors"]


def command(*arguments):
    result = CliRunner().invoke(cli.main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_workers_elsewhere_and_one_that_is_killed(opened, addresses, object_store, tmp_path):
    whole = merged(opened, RECIPES["tensor"], tmp_path / "whole.safetensors")
    output = "s3://models/workers/merged.safetensors"
    sources = [word for address in addresses[1:] for word in ("--source", address)]
    settings = ["--density", 0.2, "--gamma", 0.01, "--alpha", 0.4, "--max-shard-size", SHARD]
    plan = command("plan", "--base", addresses[0], *sources, *settings, "--output", output)
    assert plan["plan"] == f"{output}.plan.json"
    program = (
        "import os, sys, signal\n"
        "from mlflow_breadcrumbs.engine.remote import stores\n"
        "put = stores.ObjectFolder.put\n"
        "def stop(self, file, name):\n"
        "    put(self, file, name)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "stores.ObjectFolder.put = stop\n"
        "from mlflow_breadcrumbs import cli\n"
        "cli.main(['work', sys.argv[1], '--shard', '2'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, plan["plan"]], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert command("work", plan["plan"], "--shard", 1)["missing"] == list(
        range(2, len(plan["shards"]) + 1)
    ), "what was killed before its note counts for nothing"
    assert command("work", plan["plan"], "--missing")["missing"] == []
    result = command("finish", plan["plan"])
    assert result["weights_digest"] == whole.weights_digest
    assert checkpoints.weights_digest(result["output"]) == whole.weights_digest
    assert [name for name in object_store.names("workers/") if ".shards" in name] == []


def test_a_driver_that_was_stopped_goes_on(opened, addresses, monkeypatch):
    output = "s3://models/stopped/merged.safetensors"
    arguments = (addresses[0], addresses[1:], RECIPES["tensor"], output)
    put, done = stores.ObjectFolder.put, []

    def stopping(self, file, name):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        put(self, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(stores.ObjectFolder, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            files.merge_files(*arguments, max_shard_size=SHARD)
    again = []
    monkeypatch.setattr(
        stores.ObjectFolder,
        "put",
        lambda self, file, name: (again.append(name), put(self, file, name))[1],
    )
    result = files.merge_files(*arguments, max_shard_size=SHARD)
    assert not {name.rpartition("/")[2] for name in again} & {
        name.rpartition("/")[2] for name in done
    }
    assert checkpoints.weights_digest(result.output) == result.weights_digest


def test_what_changes_meanwhile_stops_the_merge(opened, addresses, object_store, tmp_path):
    inputs = [checkpoints.Checkpoint.open(address) for address in addresses]
    state = states()[1] | {"c.bias": torch.zeros(30)}
    changed = zoos.opened([state], tmp_path / "sharded")[0].files[0]
    key = addresses[1].removeprefix("s3://models/")
    object_store.client.upload_file(str(changed), object_stores.BUCKET, key)
    with pytest.raises(errors.IntegrityError, match="was written to while it was read"):
        merged(inputs, RECIPES["tensor"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://models/none/x.safetensors", "there is no s3://models/none/x.safetensors; check"),
        ("s3://models/nothing", "s3://models/nothing"),
        ("s3://no-such-bucket/x.safetensors", "there is no s3://no-such-bucket/x.safetensors"),
        ("ftp://host/x.safetensors", "its scheme 'ftp' is none of s3,"),
        ("http://127.0.0.1:1/x.safetensors", "cannot reach http://127.0.0.1:1/x"),
    ],
)
def test_addresses_that_lead_nowhere(object_store, address, words, monkeypatch):
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    with pytest.raises(errors.CheckpointError, match=words):
        checkpoints.Checkpoint.open(address)


def test_wrong_credentials_are_said(object_store, addresses, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    folder = stores.of(addresses[1]).folder
    monkeypatch.setattr(folder._system, "info", refuse)
    with pytest.raises(errors.CheckpointError, match=r"Access Denied\. Check the addr"):
        folder.state("x")


def test_headers_that_lie_are_refused_before_much_is_read(object_store, tmp_path):
    for number, content in enumerate(
        [
            (2**60).to_bytes(8, "little") + b"{",
            (50).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
            b"PK\x03\x04 a pickle",
        ]
    ):
        file = tmp_path / f"lie{number}.safetensors"
        file.write_bytes(content)
        address = object_store.put(file, "lies")
        with pytest.raises(errors.CheckpointError) as refused:
            checkpoints.Checkpoint.open(address)
        assert address in str(refused.value)
        assert "/tmp" not in str(refused.value)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../lies/lie1.safetensors"}}))
    with pytest.raises(errors.CheckpointError, match="must be a file name beside the index"):
        checkpoints.Checkpoint.open(object_store.put(index, "lies"))


def test_no_room_is_said_before_the_start(addresses, tmp_path, monkeypatch):
    full = ahead.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda path: full)
    with pytest.raises(errors.CheckpointError, match="where 10 bytes are free; set TMPDIR"):
        files.merge_files(
            addresses[0], addresses[1:], RECIPES["tensor"], tmp_path / "out.safetensors"
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_no_room_for_a_shard_that_goes_up_is_said(opened, object_store, monkeypatch):
    paths, output = (
        [checkpoint.files[0] for checkpoint in opened],
        "s3://models/full/out.safetensors",
    )
    full = places.shutil.disk_usage(paths[0].parent)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(places.shutil, "disk_usage", lambda path: full)
        with pytest.raises(errors.CheckpointError, match="a shard of s3://models/full/out") as said:
            files.merge_files(paths[0], paths[1:], RECIPES["tensor"], output)
    assert "10 bytes are free; set TMPDIR to a folder with more room" in str(said.value)
    assert object_store.names("full/") == []


def test_an_output_beside_an_input_is_refused(addresses):
    folder = addresses[1].rpartition("/")[0]
    with pytest.raises(errors.CheckpointError, match="whose files it may replace; write to anothe"):
        files.merge_files(
            addresses[0], addresses[1:], RECIPES["tensor"], f"{folder}/out.safetensors"
        )


def test_an_output_is_beside_an_input_however_the_two_are_spelled(opened, object_store):
    inputs = [object_store.put(checkpoint.files[0], "spelled") for checkpoint in opened]
    before = object_store.client.get_object(Bucket=object_stores.BUCKET, Key=inputs[1][12:])["ETag"]
    for output in ("s3a:" + inputs[1][3:], "S3:" + inputs[1][3:]):
        with pytest.raises(errors.CheckpointError, match="whose files it may replace"):
            files.merge_files(inputs[0], inputs[1:], RECIPES["tensor"], output, overwrite=True)
    after = object_store.client.get_object(Bucket=object_stores.BUCKET, Key=inputs[1][12:])["ETag"]
    assert before == after


def test_a_plan_replaces_nothing_in_a_store_but_a_plan(opened, object_store):
    inputs = [object_store.put(checkpoint.files[0], "planned") for checkpoint in opened]
    words = ["plan", "--base", inputs[0], "--source", inputs[1], "--density", "0.2"]
    words += ["--output", "s3://models/planned-out/out.safetensors", "--plan"]
    refused = CliRunner().invoke(cli.main, [*words, inputs[2]])
    assert f"{inputs[2]} exists and is no plan, so it is not replaced" in refused.output
    assert checkpoints.Checkpoint.open(inputs[2]).names == opened[2].names
    for _ in range(2):
        made = CliRunner().invoke(cli.main, [*words, "s3://models/planned-out/plan.json"])
        assert made.exit_code == 0, made.output


def test_a_source_twice_is_refused_however_it_is_spelled(opened, object_store, tmp_path):
    base, one = (
        object_store.put(checkpoint.files[0], f"twice-{i}")
        for i, checkpoint in enumerate(opened[:2])
    )
    folder = one.rpartition("/")[0]
    (tmp_path / "alone").mkdir()
    alone = opened[1].files[0].rename(tmp_path / "alone" / "model.safetensors")
    for sources in (
        (one, "s3a:" + one[3:]),
        (one, "S3:" + one[3:]),
        (folder, one),
        (base.rpartition("/")[0], one),
        (alone, alone.parent),
    ):
        with pytest.raises(errors.MergeError, match="is given twice"):
            files.merge_files(base, sources, RECIPES["tensor"], tmp_path / "out.safetensors")


def test_a_scheme_in_capitals(opened, object_store):
    address = object_store.put(opened[0].files[0], "capitals")
    found = checkpoints.Checkpoint.open("S3" + address[2:])
    assert found.location == address
    assert checkpoints.weights_digest(found) == checkpoints.weights_digest(opened[0])


@pytest.mark.parametrize("scheme", ["gs", "gcs", "abfs", "abfss"])
def test_a_library_that_is_missing_is_named_for_each_scheme(scheme, monkeypatch):
    for library in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(errors.ExtraError, match=r"pip install 'mlflow-breadcrumbs\[(gs|abfss)\]'"):
        checkpoints.Checkpoint.open(f"{scheme}://bucket/model.safetensors")


def test_a_file_that_may_not_be_removed_is_said(object_store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    folder = stores.ObjectFolder("s3://models/kept")
    monkeypatch.setattr(folder._system, "rm_file", refuse)
    with pytest.raises(errors.CheckpointError, match="cannot reach s3://models/kept/x: Access Den"):
        folder.remove("x")


@contextlib.contextmanager
def web(folder, **options):
    with object_stores.WebServer(folder, **options).serving() as server:
        yield [f"{server.address}/input{number}.safetensors" for number in range(3)]


def test_a_web_server_that_fails_now_and_then(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    whole = merged(opened, RECIPES["tensor"], tmp_path / "whole.safetensors")
    with web(tmp_path, flaky=True) as urls:
        result = files.merge_files(
            urls[0], urls[1:], RECIPES["tensor"], tmp_path / "out.safetensors", verify=True
        )
    assert result.weights_digest == whole.weights_digest


def test_a_web_server_that_begins_with_failures(opened, tmp_path, monkeypatch):
    """Its first four answers: one HEAD and one GET for each of two attempts."""
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    with web(tmp_path, failures=4) as urls:
        found = checkpoints.Checkpoint.open(urls[0])
        assert checkpoints.weights_digest(found) == checkpoints.weights_digest(opened[0])
        with pytest.raises(errors.CheckpointError, match="there is no http"):
            checkpoints.Checkpoint.open(urls[0].replace("input0", "none"))


def test_nothing_is_written_to_the_web(opened, tmp_path):
    paths = [checkpoint.files[0] for checkpoint in opened]
    with web(tmp_path) as urls, pytest.raises(errors.CheckpointError, match="can only be read"):
        files.merge_files(paths[0], paths[1:], RECIPES["tensor"], urls[0], overwrite=True)


def test_a_web_server_without_ranges(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "FIRST", 100)
    with (
        web(tmp_path, ranges=False) as urls,
        pytest.raises(errors.CheckpointError, match=r"its server knows no ranges\. Download it"),
    ):
        checkpoints.Checkpoint.open(urls[0])


def test_a_page_that_is_replaced_by_one_of_the_same_size_stops_the_merge(opened, tmp_path):
    """The server says no ETag, but when it was changed."""
    with web(tmp_path, tagged=False) as urls:
        inputs = [checkpoints.Checkpoint.open(url) for url in urls]
        file = opened[1].files[0]
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, (1e9, 1e9))
        with pytest.raises(errors.IntegrityError, match="was written to while it was read"):
            merged(inputs, RECIPES["tensor"], tmp_path / "out.safetensors")
