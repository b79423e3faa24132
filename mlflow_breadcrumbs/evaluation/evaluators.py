"""A user's own means of measuring a model: a Python function, a program, or MLflow's evaluation.

What is called here is named by the user's own command line, or by a file on their machine that it
names; nothing that a registry holds can name any of it. Each takes what is `Asked` and gives a
result, which `grading` reads.
"""

import contextlib
import dataclasses
import importlib
import importlib.machinery
import inspect
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import canonical, json_documents, programs

SECONDS = 3600.0
"""That a program may take where nobody says otherwise."""
PLACES = ("model", "data", "split", "task", "uri")
"""What a program's words may have in braces, and a function may have as parameters."""

_places: dict[str, Path] = {}
"""Where each module was looked for that evaluators were imported from, by its outermost name."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an evaluator is to measure."""

    model: Path
    """The folder of an MLflow model, with MLmodel in it."""
    split: str
    """`train`, `validation` or `test`."""
    task: str | None = None
    """`None`: all that the evaluator knows."""
    data: Path | None = None
    """Its file for this task and split."""
    uri: str | None = None
    """Of the model in MLflow; `None` before it is there."""

    def texts(self) -> dict[str, str]:
        """By the names of `PLACES`; an empty text for what there is not."""
        return {name: str(getattr(self, name) or "") for name in PLACES}


class Means(Protocol):
    """Something that measures."""

    @property
    def description(self) -> str:
        """In words, as it was given."""

    @property
    def takes(self) -> frozenset[str]:
        """Which of `PLACES` it looks at."""

    def files(self) -> Mapping[str, bytes]:
        """The code that it consists of, as far as that is known, by name."""

    def result(self, asked: Asked) -> Any:
        """What it says.

        Raises:
            EvaluatorError: it fails, takes too long, or prints what is no result.
        """


def digest(means: Means) -> str:
    """SHA-256 over the words of an evaluator and the files of its code, `sha256:…`."""
    files = {name: canonical.sha256(content) for name, content in means.files().items()}
    return canonical.digest({"evaluator": means.description, "files": files})


@dataclasses.dataclass(frozen=True)
class Function:
    """A Python function: `module:function`, found from a folder as from the current one."""

    description: str
    call: Callable[..., Any]
    place: Path
    """Where its modules are looked for first, also those that it imports when it is called."""

    @property
    def takes(self) -> frozenset[str]:
        """The parameters that it has, besides the folder of the model."""
        further = list(inspect.signature(self.call).parameters.values())[1:]
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in further):
            return frozenset(PLACES)
        return frozenset({"model", *(each.name for each in further)}) & frozenset(PLACES)

    def files(self) -> Mapping[str, bytes]:
        """The source file of its module; none where it has none, as in a notebook."""
        try:
            file = inspect.getsourcefile(self.call)
            return {} if file is None else {Path(file).name: Path(file).read_bytes()}
        except (TypeError, OSError):
            return {}

    def result(self, asked: Asked) -> Any:
        """What it returns; what it prints goes to stderr, where progress goes."""
        given = {name: getattr(asked, name) for name in self.takes - {"model"}}
        try:
            with _importing_from(self.place), contextlib.redirect_stdout(sys.stderr):
                return self.call(str(asked.model), **given)
        except errors.BreadcrumbsError:
            raise
        except Exception as error:  # it is the user's code
            raise errors.EvaluatorError(
                f"the evaluator {self.description} failed on {_named(asked)}: "
                f"{type(error).__name__}: {_line(error)}{_where(error)}"
            ) from error


def imported(reference: str, place: Path) -> Function:
    """What `module:function` names.

    Args:
        reference: the module's dotted name and the function's.
        place: the folder that modules are looked for in first.

    Raises:
        EvaluatorError: there is no such module or function.
    """
    module, _, name = reference.partition(":")
    try:
        with _importing_from(place):
            _forget_namesake(module.partition(".")[0], place)
            found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # it is the user's code
        raise errors.EvaluatorError(
            f"the evaluator {reference} can't be imported from {place}: "
            f"{type(error).__name__}: {_line(error)}; give MODULE:FUNCTION"
        ) from error
    return Function(reference, found, place)


def function(reference: str, place: Path) -> Function:
    """The same, for a function that measures a model.

    Raises:
        EvaluatorError: see `imported`; or the folder of a model can't be handed to it.
    """
    found = imported(reference, place)
    needed = _needed(found.call)
    if needed is None or needed - frozenset(PLACES[1:]):
        raise errors.EvaluatorError(
            f"the evaluator {reference} can't be called with the folder of a model; let it take "
            f"that, and of {', '.join(PLACES[1:])} what it needs"
        )
    return found


def _needed(found: Any) -> frozenset[str] | None:
    """The parameters after the first that must be given; `None` where it is no such function."""
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return None
    kinds = inspect.Parameter
    if not parameters or parameters[0].kind in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD):
        return None
    rest = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    required = [p for p in parameters[1:] if p.default is kinds.empty and p.kind not in rest]
    return frozenset(each.name for each in required)


def _forget_namesake(outermost: str, place: Path) -> None:
    """Have a module imported anew that was imported for an evaluator from another folder."""
    known = _places.setdefault(outermost, place)
    is_here = importlib.machinery.PathFinder.find_spec(outermost, [str(place)]) is not None
    if known == place or not is_here:
        return
    _places[outermost] = place
    for name in [*sys.modules]:
        if name.partition(".")[0] == outermost:
            del sys.modules[name]


@contextlib.contextmanager
def _importing_from(place: Path) -> Iterator[None]:
    """Look for modules in a folder first."""
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(place))


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that prints a result as JSON; started without a shell, within limits."""

    words: tuple[str, ...]
    """With `{model}`, `{data}`, `{split}`, `{task}` and `{uri}` where these go."""
    place: Path
    """Where files that its words name are looked for."""
    seconds: float = SECONDS
    """That it may take."""

    @property
    def description(self) -> str:
        """Its words, as a shell writes them."""
        return f"cmd: {programs.shown(self.words)}"

    @property
    def takes(self) -> frozenset[str]:
        """What its words have in braces."""
        return frozenset(name for name in PLACES if any(f"{{{name}}}" in w for w in self.words))

    def files(self) -> Mapping[str, bytes]:
        """The files that its words name, but for the program itself, up to a limit."""
        named = [self.place / word for word in self.words[1:] if "{" not in word]
        return {
            file.name: file.read_bytes()
            for file in named
            if file.is_file() and file.stat().st_size <= json_documents.BYTES
        }

    def result(self, asked: Asked) -> Any:
        """The JSON that it prints."""
        origin = f"the evaluator `{programs.shown(self.words)}` on {_named(asked)}"
        words = [_filled(word, asked.texts()) for word in self.words]
        found = programs.output(words, origin, errors.EvaluatorError, seconds=self.seconds)
        if not found.strip():
            raise errors.EvaluatorError(f"{origin} printed nothing; let it print a result as JSON")
        return json_documents.parse(found, f"what {origin} printed", errors.EvaluatorError)


def program(words: Sequence[str], place: Path, seconds: float = SECONDS) -> Program:
    """A program with its arguments.

    Raises:
        EvaluatorError: it is not there, or its words leave out the model.
    """
    if not words:
        raise errors.EvaluatorError("the evaluator cmd: names no program; give its words")
    found = Program(tuple(words), place, seconds)
    if "{" not in words[0] and shutil.which(words[0]) is None:
        raise errors.EvaluatorError(
            f"the evaluator `{programs.shown(words)}` can't be started: there is no program "
            f"{words[0]!r}"
        )
    if not found.takes & {"model", "uri"}:
        raise errors.EvaluatorError(
            f"the evaluator `{programs.shown(words)}` looks at no model: have {{model}} where the "
            "folder of the model goes"
        )
    return found


def _filled(word: str, values: Mapping[str, str]) -> str:
    """A word with the values of its places; what a value itself has in braces stays."""
    found, rest = "", word
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, brace, after = rest.partition("}")
        if brace and name in values:
            found, rest = found + before + values[name], after
        else:
            found += before + "{"
    return found + rest


def _named(asked: Asked) -> str:
    what = asked.uri or "the merged model"
    return f"{what} for the task {asked.task}" if asked.task else what


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "it says nothing"


def _where(error: BaseException) -> str:
    """The place in the user's file where it went wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
