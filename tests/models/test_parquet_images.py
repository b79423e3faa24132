"""Parquet files: any row, in any order, in any process, and never all of it in memory."""

import multiprocessing
import os
import pickle

import pyarrow as pa
import pytest
from pyarrow import parquet

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import parquet_images, readers


def write(path, cells, rows=1000):
    table = pa.table({"image": cells, "label": [0] * len(cells)})
    parquet.write_table(table, path, row_group_size=rows, write_batch_size=4)
    return path


@pytest.fixture
def pool(tmp_path):
    """Two files of row groups that batches don't divide."""
    paths = []
    for name in "ab":
        cells = [f"{name}{number}".encode() * (number % 7) for number in range(50)]
        paths.append(write(tmp_path / f"{name}.parquet", cells, 21))
    return readers.read_parquet(paths).examples


EXPECTED = [f"{name}{number}".encode() * (number % 7) for name in "ab" for number in range(50)]


def test_any_row_in_any_order(pool):
    for index in [99, 0, 50, 20, 21, 49, 98, *range(100), 3, 3]:
        assert pool[index].read() == EXPECTED[index]


def _digests(given):
    pool, indices = given
    return [pool[index].read() for index in indices]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_do_not_mix_their_images(pool, method):
    """Forked ones share the temporary file of the first, and must not write to it."""
    assert pool[0].read() == EXPECTED[0]
    orders = [list(range(start, 100, 3)) for start in range(3)]
    with multiprocessing.get_context(method).Pool(3) as processes:
        found = processes.map(_digests, [(pool, order) for order in orders], chunksize=1)
    assert found == [[EXPECTED[index] for index in order] for order in orders]
    assert [each.read() for each in pool] == EXPECTED


def test_a_fork_writes_to_a_file_of_its_own(tmp_path):
    spool = parquet_images.Spool()
    first = spool.append(b"first")
    child = os.fork()
    if child == 0:
        spool.append(b"child's")
        os._exit(0 if first.read() == b"first" else 1)
    assert os.waitpid(child, 0)[1] == 0
    second = spool.append(b"second")
    assert (first.read(), second.read()) == (b"first", b"second")
    assert pickle.loads(pickle.dumps(spool)).append(b"x").read() == b"x"


def test_the_file_is_not_held_in_memory(run_script, tmp_path):
    """A hundred images of a megabyte in one row group; held, they take twice that and more."""
    files = {
        name: str(write(tmp_path / f"{name}.parquet", [os.urandom(1 << 20) for _ in range(count)]))
        for name, count in (("few", 20), ("many", 100))
    }
    (seen,) = run_script("peaks", {"what": "parquet", **files})
    assert seen["more"] < 80 << 20


def test_a_row_names_no_file_elsewhere(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data/in.png").write_bytes(b"in")
    names = ["in.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "absent.png"]
    cells = [{"bytes": None, "path": name} for name in names]
    inside, *outside = readers.read_parquet([write(tmp_path / "data/x.parquet", cells)]).examples
    assert inside.read() == b"in"
    for example, name in zip(outside, names[1:], strict=True):
        with pytest.raises(errors.TaskError) as caught:
            example.image()
        assert f"names the file {name!r}, which is not in the folder of the Parquet file" in (
            str(caught.value)
        )


def test_a_damaged_row_group(tmp_path):
    path = write(tmp_path / "a.parquet", [os.urandom(2000) for _ in range(20)])
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    content[10:60] = b"\xff" * 50
    path.write_bytes(content)
    examples = readers.read_parquet([path]).examples
    with pytest.raises(errors.TaskError, match=r"The images of '.*a\.parquet' can't be read"):
        examples[0].image()


def test_images_beyond_the_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_MAX_IMAGE_BYTES", "100")
    (example,) = readers.read_parquet([write(tmp_path / "a.parquet", [bytes(101)])]).examples
    with pytest.raises(errors.TaskError, match=r"in row 0 of .* has 101 bytes; at most 100 are"):
        example.image()
