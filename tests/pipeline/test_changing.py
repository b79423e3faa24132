"""Merges of merges with a source more or less: the digests of the whole list, and what is read."""

import dataclasses
import json
import shutil
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import parts, tensor_files
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.pipeline import changing, inputs, keeping
from mlflow_breadcrumbs.registry import versions

WEIGHTS = "open_clip_model.safetensors"


def run(*arguments):
    return CliRunner().invoke(cli.main, ["merge", *map(str, arguments)])


def merge(*arguments):
    """A merge by the command; what it says in JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def whole(zoo, *sources, name="whole", more=()):
    """A merge of a whole list of sources, by breadcrumbs where no recipe is given."""
    if not {word for word in more if str(word).startswith("--")} - {
        "--keep-parts",
        "--tasks",
        "--device",
    }:
        more = ("--method", "breadcrumbs", *more)
    listed = [part for source in sources for part in ("--source", source)]
    return merge("--base", zoo.base, *listed, "--registered-model", name, *more)


def refused(words, *arguments, code=1):
    result = run(*arguments)
    assert (result.exit_code, words in result.output.replace("\n", " ")) == (code, True), (
        result.output
    )
    return result


def stated(made):
    return contents.read_statement(versions.resolve(made["uri"]))[1]


def same(one, other):
    assert one["weights_digest"] == other["weights_digest"]
    assert one["recipe_digest"] == other["recipe_digest"]
    ours, theirs = stated(one), stated(other)
    assert [(e.uri, e.weight, e.dtypes, e.tasks, e.weights_digest) for e in ours.inputs] == [
        (e.uri, e.weight, e.dtypes, e.tasks, e.weights_digest) for e in theirs.inputs
    ]


def note(made, start):
    found = [line for line in made["notes"] if line.startswith(start) or start in line]
    assert len(found) == 1, made["notes"]
    return found[0]


def folder_of(uri):
    return Path(versions.resolve(uri).location.removeprefix("file://"))


def parts_of(made):
    location = mlflow.get_run(made["run_id"]).info.artifact_uri
    return Path(location.removeprefix("file://")) / parts.FOLDER


def overwrite(weights):
    """Set the numbers of a checkpoint to zero, and leave its header."""
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    weights.write_bytes(content[:start] + bytes(len(content) - start))


@pytest.fixture
def pair(family):
    """Two of three sources, merged with parts; in a copy of the zoo that may be damaged."""
    made = whole(family, *family.sources[:2], name="pair", more=["--keep-parts"])
    return family, made


def test_a_source_is_added_at_the_cost_of_one(pair):
    """The others' weights are not what they were, and nobody notices: none of them is read."""
    zoo, before = pair
    one = "the run keeps what each of 2 sources contributes"
    assert note(before, one).endswith("MB, for `merge --from`")
    expected = whole(zoo, *zoo.sources)
    for source in zoo.sources[:2]:
        overwrite(folder_of(source) / WEIGHTS)
    made = merge("--from", before["uri"], "--add", zoo.sources[2])
    same(made, expected)
    assert made["name"] == "pair"
    with tensor_files.TensorFiles.open(folder_of(zoo.sources[2]) / WEIGHTS) as file:
        size = file.nbytes
    metrics = mlflow.get_run(made["run_id"]).data.metrics
    kept = sum(path.stat().st_size for path in parts_of(before).glob("*.safetensors"))
    assert metrics["merge_bytes"] == 2 * size + kept
    assert kept < 0.3 * 2 * size
    assert note(made, "MB were read") == (
        f"{metrics['merge_bytes'] / 1e6:.1f} MB were read: the base, 1 source whole and 2 from "
        f"their parts; whole, the base and all sources have {4 * size / 1e6:.1f} MB"
    )
    found = stated(made)
    assert (found.origin, found.added, found.removed) == (before["uri"], (zoo.sources[2],), ())
    assert found.parts_digest is None
    # Without the parts they are read, and found out.
    shutil.rmtree(parts_of(before))
    refused("was expected: they were changed", "--from", before["uri"], "--remove", zoo.sources[1])


def test_a_source_is_taken_out_and_none_is_read(pair):
    zoo, _ = pair
    before = whole(zoo, *zoo.sources, more=["--keep-parts"])
    expected = whole(zoo, zoo.sources[0], zoo.sources[2], name="two")
    for source in zoo.sources:
        overwrite(folder_of(source) / WEIGHTS)
    made = merge("--from", before["uri"], "--remove", zoo.sources[1], "--keep-parts")
    same(made, expected)
    assert "the base and 2 from their parts; whole" in note(made, "MB were read")
    found = stated(made)
    assert (found.origin, found.added, found.removed) == (before["uri"], (), (zoo.sources[1],))
    # The parts were handed on, so that it can be gone on from here.
    last = merge("--from", made["uri"], "--remove", zoo.sources[0])
    assert "the base and 1 from its part; whole" in note(last, "MB were read")


def test_a_source_that_is_gone_is_taken_out(pair):
    zoo, _ = pair
    before = whole(zoo, *zoo.sources, more=["--keep-parts"])
    expected = whole(zoo, *zoo.sources[:2], name="two")
    mlflow.MlflowClient().delete_registered_model("tiny-hues")
    made = merge("--from", before["uri"], "--remove", zoo.sources[2])
    same(made, expected)


def test_sources_are_exchanged_and_weights_stay(pair):
    zoo, _ = pair
    first, second, third = zoo.sources
    before = whole(zoo, f"{first}=0.7", second, more=["--keep-parts"])
    made = merge("--from", before["uri"], "--add", f"{third}=0.5", "--remove", second)
    same(made, whole(zoo, f"{first}=0.7", f"{third}=0.5", name="exchanged"))
    made = merge("--from", before["uri"], "--remove", first)  # what is left weighs 1
    same(made, whole(zoo, second, name="left"))
    made = merge("--from", before["uri"], "--weights", "1,0.25")
    same(made, whole(zoo, first, f"{second}=0.25", name="weighed"))
    moved = merge("--from", before["uri"], "--remove", first, "--add", first)
    same(moved, whole(zoo, second, first, name="moved"))


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "breadcrumbs_signed"),
        ("--method", "ties"),
        ("--density", "0.3", "--unit", "row", "--combine", "mean", "--dtype", "bfloat16"),
        ("--method", "tsv_m", "--density", "0.2"),
    ],
)
def test_every_kind_of_recipe_that_parts_help(pair, more):
    zoo, _ = pair
    before = whole(zoo, *zoo.sources[:2], more=[*more, "--keep-parts"])
    made = merge("--from", before["uri"], "--add", zoo.sources[2], "--remove", zoo.sources[0])
    same(made, whole(zoo, zoo.sources[1], zoo.sources[2], name="expected", more=more))
    note(made, "1 source whole and 1 from its part")


def test_parts_need_a_method_that_is_named(family):
    arguments = ["--base", family.base, "--source", family.sources[0], "--registered-model", "x"]
    words = "--keep-parts is of no use for the method auto, which takes methods that need whole"
    refused(words, *arguments, "--keep-parts")


@pytest.mark.parametrize("method", ["tsv_m", "task_arithmetic", "breadcrumbs_calibrated"])
def test_a_recipe_that_parts_do_not_help_works_at_the_full_cost(pair, method):
    zoo, _ = pair
    arguments = ["--base", zoo.base, "--source", zoo.sources[0], "--registered-model", "x"]
    words = f"--keep-parts is of no use for the recipe {method} ("
    refused(words, *arguments, "--method", method, "--keep-parts")
    before = whole(zoo, *zoo.sources[:2], more=["--method", method])
    made = merge("--from", before["uri"], "--add", zoo.sources[2])
    same(made, whole(zoo, *zoo.sources, name="expected", more=["--method", method]))
    words = f"{before['uri']} was merged without --keep-parts, so every source is read"
    assert words in made["notes"]


def test_an_average_has_another_alpha(pair):
    zoo, _ = pair
    before = whole(zoo, *zoo.sources[:2], more=["--method", "weight_average"])
    made = merge("--from", before["uri"], "--add", zoo.sources[2])
    same(made, whole(zoo, *zoo.sources, name="expected", more=["--method", "weight_average"]))
    words = "alpha is 1/3 for 3 sources, as the method weight_average has it; it was 1/2"
    assert words in made["notes"]
    # The same numbers by another name, or by none, which must not be taken for it.
    for name, how in (("named", ["--method", "task_arithmetic"]), ("bare", ["--density", "1"])):
        numbers = [*how, "--gamma", "0", "--alpha", "0.5"]
        before = whole(zoo, *zoo.sources[:2], name=name, more=numbers)
        made = merge("--from", before["uri"], "--add", zoo.sources[2])
        same(made, whole(zoo, *zoo.sources, name=f"{name}-expected", more=numbers))
        words = "alpha stays 0.5, which is 1/2 for the 2 sources before; the lineage does not say"
        assert any(line.startswith(words) for line in made["notes"]) == (name == "bare")


def test_the_accuracies_of_a_changed_merge(pair):
    """Measuring needs the sources' weights; the merge itself still reads none of them."""
    zoo, before = pair
    made = merge("--from", before["uri"], "--add", zoo.sources[2], "--tasks", zoo.tasks)
    expected = whole(zoo, *zoo.sources, more=["--tasks", zoo.tasks])
    same(made, expected)
    assert made["metrics"] == expected["metrics"]
    note(made, "1 source whole and 2 from their parts")


def test_the_same_change_is_found_not_repeated(pair):
    zoo, before = pair
    change = ("--from", before["uri"], "--add", zoo.sources[2])
    first = merge(*change)
    again = merge(*change)
    assert (again["reused"], again["uri"]) == (True, first["uri"])
    assert "notes" not in again
    kept = merge(*change, "--keep-parts")
    words = f"{first['uri']} was merged without --keep-parts; with --force it is merged again"
    assert (kept["reused"], kept["notes"]) == (True, [words])
    forced = merge(*change, "--keep-parts", "--force")
    assert forced["weights_digest"] == first["weights_digest"]
    assert stated(forced).parts_digest is not None


def test_the_history_says_where_it_came_from_and_it_can_be_done_again(pair):
    zoo, before = pair
    made = merge("--from", before["uri"], "--add", zoo.sources[2], "--remove", zoo.sources[0])
    runner = CliRunner()
    events = json.loads(runner.invoke(cli.main, ["history", "pair", "--json"]).stdout)
    (details,) = [event["details"] for event in events if "from" in event["details"]]
    assert {key: details[key] for key in ("from", "added", "removed")} == {
        "from": before["uri"],
        "added": zoo.sources[2],
        "removed": zoo.sources[0],
    }
    for command in ("verify", "reproduce"):
        done = runner.invoke(cli.main, [command, made["uri"]])
        assert done.exit_code == 0, done.output


# Parts that are not what they were.


def test_parts_that_are_gone(pair):
    zoo, before = pair
    expected = whole(zoo, *zoo.sources)
    kept = parts_of(before)
    change = ("--from", before["uri"], "--add", zoo.sources[2], "--force")
    index = json.loads((kept / parts.INDEX).read_bytes())
    (name, _, _), *_ = index["parts"][1]["files"]
    (kept / name).unlink()
    made = merge(*change)
    same(made, expected)
    assert f"the part of {zoo.sources[1]} is gone, so that source is read" in made["notes"]
    note(made, "2 sources whole and 1 from its part")
    shutil.rmtree(kept)
    made = merge(*change)
    same(made, expected)
    assert made["notes"] == [f"the parts of {before['uri']} are gone, so every source is read"]
    mlflow.delete_run(before["run_id"])
    made = merge(*change)
    same(made, expected)
    words = f"the run of {before['uri']}, which had the parts, is gone, so every source is read"
    assert made["notes"] == [words]


def test_parts_of_a_later_release(pair, monkeypatch):
    zoo, before = pair
    expected = whole(zoo, *zoo.sources)
    monkeypatch.setattr(parts, "FORMAT", "urn:mlflow-breadcrumbs:parts:v0")
    made = merge("--from", before["uri"], "--add", zoo.sources[2])
    same(made, expected)
    words = f"the parts of {before['uri']} are of a later release, so every source is read"
    assert made["notes"] == [words]


def damage(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def registered(name):
    return mlflow.MlflowClient().search_model_versions(f"name = '{name}'")


def test_parts_that_were_tampered_with(pair):
    zoo, before = pair
    kept = parts_of(before)
    change = ("--from", before["uri"], "--add", zoo.sources[2])
    file = next(kept.glob("*.safetensors"))
    damage(file)
    refused(f"the part {file.name} of the source", *change)
    damage(file)
    damage(kept / parts.INDEX)
    words = f"the parts/index.json of the run of {before['uri']} was changed after it was written"
    refused(words, *change)
    assert len(registered("pair")) == 1


def test_parts_of_another_merge(pair):
    """Whoever can write the lineage too still cannot pass off what does not fit it."""
    zoo, before = pair
    other = whole(zoo, *zoo.sources[:2], name="other", more=["--density", "0.3", "--keep-parts"])
    change = changing.plan(before["uri"], [(zoo.sources[2], None)])
    mixed = dataclasses.replace(
        change, run_id=other["run_id"], parts_digest=stated(other).parts_digest
    )
    with versions.workspace() as folder, pytest.raises(errors.IntegrityError, match="is of anothe"):
        keeping.find(mixed, folder)


def test_a_disk_that_is_full_while_parts_are_kept(pair, monkeypatch, tmp_path):
    """Nothing is registered, and the run says that it failed."""
    zoo, before = pair

    def full(self, *arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", full)
    change = ("--from", before["uri"], "--add", zoo.sources[2], "--keep-parts")
    refused("No space left on device", *change)
    assert len(registered("pair")) == 1
    kind = "tags.`breadcrumbs.kind` = 'merge' and attributes.status = 'FAILED'"
    assert mlflow.search_runs(filter_string=kind, output_format="list")
    monkeypatch.undo()


# What stops a change.


def test_what_cannot_be_changed(pair):
    zoo, before = pair
    first, second, third = zoo.sources
    uri = before["uri"]
    refused(f"{zoo.base} has no lineage.json", "--from", zoo.base, "--add", third)
    words = f"{third} is not a source of {uri}, whose sources are {first}, {second}"
    refused(words, "--from", uri, "--remove", third)
    refused(
        "models:/tiny-hues/9 is not a source of", "--from", uri, "--remove", "models:/tiny-hues/9"
    )
    refused(f"--remove names {first} twice", "--from", uri, "--remove", f"{first},{first}")
    words = f"without {first}, {second} no source of {uri} is left to merge; --add another"
    refused(words, "--from", uri, "--remove", first, "--remove", second)
    words = f"{first} is a source of {uri} already; leave out --add"
    refused(words, "--from", uri, "--add", first)
    refused("are the same version", "--from", uri, "--add", f"{third},{third}")
    refused("is the base itself", "--from", uri, "--add", zoo.base)
    words = "the recipe has 2 weights for 3 sources"
    refused(words, "--from", uri, "--add", third, "--weights", "1,2")
    refused("'models:/pair' names no version", "--from", "models:/pair", "--add", third)
    assert len(registered("pair")) == 1


def test_options_that_contradict_each_other(pair):
    zoo, before = pair
    uri = before["uri"]
    words = f"--from takes base, sources and recipe from {uri}; leave out --alpha, --base, --source"
    given = ("--base", zoo.base, "--source", zoo.sources[2], "--alpha", "0")
    refused(words, "--from", uri, *given, code=2)
    for option, value in (("--add", zoo.sources[0]), ("--remove", "x/1"), ("--weights", "1")):
        refused(f"{option} needs --from", "--base", zoo.base, option, value, code=2)
    refused("Missing option '--base'", "--registered-model", "x", code=2)
    refused("Missing option '--registered-model'", "--base", zoo.base, code=2)
    refused("--weights is '1,x'; write numbers", "--from", uri, "--weights", "1,x", code=2)


def test_a_source_is_named_by_an_alias_or_its_model(pair):
    zoo, before = pair
    mlflow.MlflowClient().set_registered_model_alias("tiny-colours", "best", "1")
    by_alias = changing.plan(before["uri"], remove=["models:/tiny-colours@best"])
    model = versions.resolve(zoo.sources[0]).model_id
    by_model = changing.plan(before["uri"], remove=[f"models:/{model}"])
    assert by_alias.removed == by_model.removed == zoo.sources[:1]


def test_a_base_that_is_not_what_it_was(pair):
    zoo, before = pair
    change = ("--from", before["uri"], "--add", zoo.sources[2])
    client = mlflow.MlflowClient()
    digest = versions.resolve(zoo.base).recorded_digest
    client.set_model_version_tag("tiny", "1", "breadcrumbs.weights_digest", "sha256:" + "0" * 64)
    words = f"{zoo.base} is not what went into {before['uri']}: it had the weights digest {digest}"
    refused(words, *change)
    client.set_model_version_tag("tiny", "1", "breadcrumbs.weights_digest", digest)
    damage(folder_of(zoo.base) / WEIGHTS)
    refused("the weights of the base have the digest", *change)
    assert len(registered("pair")) == 1


def test_a_source_of_ones_own_with_parts_from_a_server(on_server, tmp_path):
    """Over HTTP: the weights of sources that have a part are not fetched."""
    zoo = on_server
    mlflow.set_experiment("changed-over-http")
    before = whole(zoo, *zoo.sources[:2], name="http-pair", more=["--keep-parts"])
    change = changing.plan(before["uri"], [(zoo.sources[2], None)])
    with versions.workspace() as folder:
        resolved = inputs.resolve(change.base, change.sources)
        taken = inputs.open_all(resolved, folder, known=change.digests, lazily=True)
        assert not any(version.path.exists() for version in taken.everything)
        assert keeping.find(change, folder).known.keys() == set(taken.digests[1:3])
    made = merge("--from", before["uri"], "--add", zoo.sources[2])
    same(made, whole(zoo, *zoo.sources, name="http-whole"))
