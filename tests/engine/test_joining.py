"""Merges from parts: the bits of a merge of the whole sources, and what is read for them."""

import dataclasses

import drawn
import numpy as np
import pytest
import torch
import zoos
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, extracting, joining, merging, parts, recipe
from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.cpu import masking, reading, selection

RECIPE = recipe.MergeRecipe.from_method("breadcrumbs", sources=3)


def labels(sources):
    return [f"source {number}" for number in range(len(sources))]


def joined(base, sources, made, folder, **options):
    """A merge from parts of what is one, and of what is whole."""
    expected = [checkpoints.weights_digest(base)] + [
        source.known.source
        if isinstance(source, parts.OpenedPart)
        else checkpoints.weights_digest(source)
        for source in sources
    ]
    output = folder / "joined.safetensors"
    output.unlink(missing_ok=True)
    options = {
        "labels": labels(sources),
        "expected": expected,
        "threads": 2,
        "max_norm_ratio": None,
    } | options
    return joining.merge(base, sources, made, output, folder, **options)


def whole(base, sources, made, folder):
    return merging.merge(
        base,
        sources,
        made,
        folder / "whole.safetensors",
        labels=labels(sources),
        max_norm_ratio=None,
        verify=True,
        overwrite=True,
    )


def opened(made, folder):
    """The parts of a merge, read back from the bytes of their index."""
    found = parts.read_index(made.index.to_json(), "index.json")
    assert found == made.index
    return [parts.OpenedPart(part, folder) for part in found.parts]


def zoo(folder, sources=3, dtype=torch.float32):
    """Checkpoints of a base and its sources, in all kinds of tensors."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (64, 48), "b.bias": (33,), "c.scale": (), "d.embedding": (700, 400)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    states = [{**base, "e.ids": torch.arange(5), "f.frozen": torch.ones(100, 4)}]
    for _ in range(sources):
        tuned = {
            name: (tensor + 0.05 * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in base.items()
        }
        states.append({**tuned, "e.ids": torch.arange(5), "f.frozen": torch.ones(100, 4)})
    return zoos.opened(states, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("joined")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=drawn.merges())
def test_parts_give_the_bits_of_the_definition(folder, monkeypatch, case):
    """All of them, then one whole and the others from their parts, then one fewer."""
    states, made, work = case
    with monkeypatch.context() as patch:
        patch.setattr(masking, "BLOCK", work["block"])
        patch.setattr(masking, "LONG", work["long"])
        patch.setattr(selection, "SAMPLE", work["sample"])
        patch.setattr(reading, "PART", work["part"])
        patch.setattr(parts, "RUN", max(300, work["part"] // 3))
        patch.setattr(parts, "FILE", max(3000, work["piece"]))
        base, *sources = zoos.opened(states, folder)
        for left in folder.glob("*.safetensors"):
            if not left.name.startswith("input"):
                left.unlink()
        try:
            expected = merging.merge(
                base,
                sources,
                made,
                folder / "whole.safetensors",
                labels=labels(sources),
                backend=reference.Reference(),
                max_norm_ratio=None,
                verify=True,
                overwrite=True,
            )
        except errors.MergeError:
            return  # what an input or a result overflows to is told by other tests
        first = joined(base, sources, made, folder)
        drawn.assert_same(first.result, expected)
        kept = opened(first, folder)
        drawn.assert_same(joined(base, [*kept[:-1], sources[-1]], made, folder).result, expected)
        drawn.assert_same(joined(base, kept, made, folder).result, expected)
        if len(kept) > 1:
            fewer = dataclasses.replace(made, weights=made.weights[1:])
            shorter = whole(base, sources[1:], fewer, folder)
            drawn.assert_same(joined(base, kept[1:], fewer, folder).result, shorter)


@pytest.mark.parametrize("combine", ["tsv", "iso"])
@pytest.mark.parametrize("consensus", ["none", "mass"])
def test_decompositions_of_masked_matrices_get_the_same_numbers(tmp_path, combine, consensus):
    made = dataclasses.replace(RECIPE, combine=combine, consensus=consensus, density=0.3)
    base, *sources = zoo(tmp_path)
    kept = opened(joined(base, sources, made, tmp_path), tmp_path)
    found = joined(base, [kept[0], kept[2], sources[1]], made, tmp_path).result
    expected = whole(base, [sources[0], sources[2], sources[1]], made, tmp_path)
    drawn.assert_same(found, expected)
    assert found.tolerances == expected.tolerances != {}


def test_one_source_more_costs_one_source(tmp_path):
    base, *sources = zoo(tmp_path, 4)
    first = joined(base, sources[:3], RECIPE, tmp_path)
    assert first.result.bytes_read == first.bytes_without == 4 * base.nbytes
    kept = opened(first, tmp_path)
    for source in sources[:3]:
        source.close()  # they can't be read any more
    more = joined(base, [*kept, sources[3]], RECIPE, tmp_path)
    assert more.bytes_without == 5 * base.nbytes
    assert more.result.bytes_read == 2 * base.nbytes + first.index.nbytes
    assert first.index.nbytes < 3 * 0.2 * base.nbytes
    assert len(more.index.parts) == 4
    assert {path.name for path in more.files} == {
        file.name for part in more.index.parts for file in part.files
    }


def test_what_is_known_of_a_source_is_what_reading_it_tells(tmp_path):
    """The statistics of its masks, and what rounding did; nothing of it is read for them."""
    base, *sources = zoo(tmp_path, dtype=torch.bfloat16)
    expected = whole(base, sources, RECIPE, tmp_path)
    kept = opened(joined(base, sources, RECIPE, tmp_path), tmp_path)
    again = joined(base, kept, RECIPE, tmp_path).result
    assert again.statistics == expected.statistics
    assert [noise.label for noise in again.noises] == labels(sources)
    for ours, theirs in zip(again.noises, expected.noises, strict=True):
        assert (ours.label, ours.dtypes) == (theirs.label, theirs.dtypes)
        assert (ours.expected, ours.norm) == pytest.approx((theirs.expected, theirs.norm))
    assert again.notes == expected.notes
    assert again.source_rows(labels(sources)) == expected.source_rows(labels(sources))


def test_a_part_is_lossless_where_a_source_cannot_be_rebuilt(tmp_path):
    """θ + (θ_t − θ) is not θ_t in floating point; so parts keep the difference, not the source."""
    base, *sources = zoo(tmp_path)
    (kept, *_) = opened(joined(base, sources, RECIPE, tmp_path), tmp_path)
    names = [entry[0] for entry in joined(base, sources, RECIPE, tmp_path).index.tensors]
    number, name = names.index("d.embedding"), "d.embedding"
    tau = (sources[0].tensor(name) - base.tensor(name)).reshape(-1)
    found = torch.cat(
        [
            kept.run(number, start, torch.empty(min(parts.RUN, tau.numel() - start)))
            for start in range(0, tau.numel(), parts.RUN)
        ]
    )
    mask = reference.keep_mask(tau, "tensor", 0.14, 0.01)
    assert torch.equal(found, torch.where(mask, tau, 0.0))


# What stops it.


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            "task_arithmetic",
            r"for the recipe task_arithmetic \(density 1, combine sum\): nothing is",
        ),
        ("tsv_m", r"for the recipe tsv_m \(density 1, combine tsv\): nothing is masked"),
        (
            "tact",
            r"for the recipe tact \(density 0\.5, combine covariance\): it needs the sources'",
        ),
        (
            "breadcrumbs_calibrated",
            r"for the recipe breadcrumbs_calibrated \(.*, calibrate svc\): it needs the",
        ),
    ],
)
def test_recipes_that_parts_do_not_help(made, words):
    with pytest.raises(errors.MergeError, match=f"--keep-parts is of no use {words}") as caught:
        parts.check_recipe(recipe.MergeRecipe.from_method(made, sources=2))
    assert str(caught.value).endswith(
        "Merge without --keep-parts; `merge --from` works all the same, and reads every source"
    )


@pytest.mark.parametrize("made", ["breadcrumbs", "breadcrumbs_signed", "ties"])
def test_recipes_that_they_do_help(made):
    parts.check_recipe(recipe.MergeRecipe.from_method(made, sources=2))


def test_parts_as_large_as_their_sources(tmp_path):
    base, *sources = zoo(tmp_path, dtype=torch.bfloat16)
    made = recipe.MergeRecipe(density=0.5)
    words = (
        r"no use for the recipe with density 0\.5, combine sum with the source source 0: with "
        r"density 0\.5, what it contributes takes up to 0\.6 MB, and the source itself 0\.6 MB"
    )
    with pytest.raises(errors.MergeError, match=words):
        joined(base, sources, made, tmp_path, worthwhile=True)
    assert not (tmp_path / "joined.safetensors").exists()


def test_a_part_that_was_tampered_with(tmp_path):
    base, *sources = zoo(tmp_path)
    made = joined(base, sources, RECIPE, tmp_path)
    content = bytearray(made.files[1].read_bytes())
    content[-1] ^= 1
    made.files[1].write_bytes(content)
    words = (
        f"the part {made.files[1].name} of the source {made.index.parts[1].source} was changed: "
        "recorded sha256:.*, found sha256:.* Nothing was written; restore it, or delete the parts"
    )
    with pytest.raises(errors.IntegrityError, match=words):
        opened(made, tmp_path)


@pytest.mark.parametrize("change", ["bits", "values", "dtype", "missing", "shape"])
def test_a_part_whose_digest_fits_and_whose_content_does_not(tmp_path, change):
    """Somebody who can write both, the file and the index, still gets no further than this."""
    base, *sources = zoo(tmp_path)
    made = joined(base, sources, RECIPE, tmp_path)
    tensors = load_file(made.files[0])
    key = next(name for name in tensors if name.endswith(".0.bits") and tensors[name].numel() > 99)
    values = key.replace("bits", "values")
    if change == "bits":
        tensors[key] = tensors[key][:-1]
    elif change == "values":
        tensors[values] = tensors[values][:-1]
    elif change == "dtype":
        tensors[values] = tensors[values].double()
    elif change == "shape":
        tensors[values] = tensors[values].reshape(1, -1)
    else:
        del tensors[values]
    save_file(tensors, made.files[0])
    digest = checkpoints.file_digest(made.files[0])
    file = dataclasses.replace(made.index.parts[0].files[0], digest=digest)
    part = parts.OpenedPart(
        dataclasses.replace(made.index.parts[0], files=(file,)), made.files[0].parent
    )
    others = opened(dataclasses.replace(made, index=rest(made.index)), tmp_path)
    with pytest.raises(errors.IntegrityError, match=r"is damaged at .*; merge anew, with --keep"):
        joined(base, [part, *others], RECIPE, tmp_path)
    assert not (tmp_path / "joined.safetensors").exists()


def rest(index):
    return dataclasses.replace(index, parts=index.parts[1:])


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"tensors": [], "base": "", "masks": {}, "parts": [{}]}',
        b'{"tensors": [["a", "F32"]], "base": "", "masks": {}, "parts": []}',
        b'{"tensors": [], "base": "", "masks": {}, "parts": [{"noise": null, "source": "", '
        b'"dtypes": [], "bytes": 1, "statistics": [], "files": [["../a.safetensors", "", 1]]}]}',
    ],
)
def test_an_index_that_is_none(content):
    with pytest.raises(errors.IntegrityError, match=r"index\.json is no index of parts"):
        parts.read_index(content, "index.json")


def test_an_index_of_a_later_release_is_not_read():
    assert parts.read_index(b'{"format": "urn:mlflow-breadcrumbs:parts:v2"}', "index.json") is None


def test_a_source_that_is_not_the_one_expected(tmp_path):
    base, *sources = zoo(tmp_path)
    expected = [checkpoints.weights_digest(base), *["sha256:" + "0" * 64] * 3]
    with pytest.raises(errors.IntegrityError, match="the weights of source 0 have the digest"):
        joined(base, sources, RECIPE, tmp_path, expected=expected)
    assert not (tmp_path / "joined.safetensors").exists()


def test_a_sum_that_overflows_once_a_source_is_gone(tmp_path):
    """The parts cancelled each other out; the message is that of a merge of what is left."""
    states = [{"a": torch.zeros(64)} for _ in range(3)]
    states[1]["a"][5], states[2]["a"][5] = 3e38, -3e38
    base, *sources = zoos.opened(states, tmp_path)
    made = recipe.MergeRecipe(density=0.5, alpha=2.0)
    kept = opened(joined(base, sources, made, tmp_path), tmp_path)
    words = r"the merged tensor 'a' overflows float32 at flat index 5; lower alpha or the weights"
    for given_sources in (kept[:1], sources[:1]):
        with pytest.raises(errors.MergeError, match=words):
            joined(base, given_sources, made, tmp_path)
    with pytest.raises(errors.MergeError, match=words):
        whole(base, sources[:1], made, tmp_path)


def test_an_input_that_is_not_finite(tmp_path):
    base, *sources = zoo(tmp_path, 2)
    states = [{name: one.tensor(name).clone() for name in one.names} for one in (base, *sources)]
    states[2]["b.bias"][7] = float("nan")
    base, *sources = zoos.opened(states, tmp_path)
    words = r"source 1 has nan in the tensor 'b\.bias' at flat index 7; a merge needs finite"
    for made in (RECIPE, dataclasses.replace(RECIPE, unit="model")):
        with pytest.raises(errors.MergeError, match=words):
            joined(base, sources, made, tmp_path)


def test_infinite_changes_of_finite_numbers_are_kept_and_read_back(tmp_path):
    states = [{"a": torch.full((64,), -3e38)}, {"a": torch.full((64,), 3e38)}]
    base, source = zoos.opened(states, tmp_path)
    made = recipe.MergeRecipe(density=0.5, alpha=0.0, weights=(0.0,))
    fresh = merging.plan(base, [source], made)
    ((statistics, files, _),) = extracting.extract(
        fresh, tmp_path, threads=1, advance=lambda amount: None
    )
    known = parts.SourcePart("sha256:", ("F32",), 1, tuple(statistics), files)
    index = parts.PartsIndex("sha256:", {}, parts.tensor_table(fresh), (known,))
    assert parts.read_index(index.to_json(), "index.json") == index
    found = parts.OpenedPart(known, tmp_path).run(0, 0, torch.empty(64))
    assert found.isinf().sum() == statistics[0].kept == 32
    assert np.isinf(statistics[0].energy)
