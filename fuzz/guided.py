"""One target with atheris, which finds inputs by the branches that they reach.

`python -m fuzz.guided --seconds 600 policy`, with the extra `fuzz`. The package is imported after
atheris has prepared it, so this doesn't go through `python -m fuzz`.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from fuzz import mutations

FOUND = Path(__file__).parent / "found"


def run(target: str, seconds: int, found: Path) -> None:
    """Run until the time is over or an input fails, which is kept; ends the process.

    The last lines that libFuzzer prints tell how many inputs there were.

    Args:
        target: a key of `targets.TARGETS`.
        seconds: at most.
        found: a folder for what fails.
    """
    import atheris

    with atheris.instrument_imports(include=["mlflow_breadcrumbs"]):
        from fuzz import targets

    found.mkdir(exist_ok=True)
    # libFuzzer leaves without a word to Python; the folder is the system's to clean.
    space = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = space / "corpus"
    corpus.mkdir()
    for number, content in enumerate(mutations.examples(target)):
        (corpus / f"sound-{number}").write_bytes(content)
    words = space / "words"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in mutations.TOKENS if token))
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/{target}-",
        f"-dict={words}",
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-max_len=65536",
        "-verbosity=0",
        "-print_final_stats=1",
    ]

    def one(content: bytes) -> None:
        targets.run(target, content, space / "x")

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    with contextlib.suppress(KeyboardInterrupt):
        atheris.Fuzz()


def _escaped(token: bytes) -> str:
    """A token as a word of libFuzzer's dictionary, which takes 64 bytes."""
    return "".join(f"\\x{byte:02x}" for byte in token[:64])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.guided", description=__doc__)
    parser.add_argument("target", choices=sorted(path.name for path in mutations.CORPUS.iterdir()))
    parser.add_argument("--seconds", type=int, default=60, help="default 60")
    given = parser.parse_args()
    run(given.target, given.seconds, FOUND)


if __name__ == "__main__":
    main()
