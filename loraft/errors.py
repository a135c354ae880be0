"""Every error that loraft raises for a person, drawn by fault.

    LoraftError
    ├── InvalidInputError       exit 2: the input is wrong, or foreseen not to work
    │   ├── ConfigError         the YAML file or a key=value override
    │   ├── DataError           a data file or its rows
    │   ├── ModelError          a base model, its files or its tokenizer
    │   ├── AdapterError        an adapter: what it is asked to adapt, or its files
    │   ├── RunFolderError      the folder of a run, or a checkpoint in it
    │   └── ResourceError       memory or disk that is too small for what is asked
    ├── RunError                exit 3: it went wrong while running
    │   ├── LostRankError       a process that trains with others has gone
    │   ├── NonFiniteError      a loss or gradient that is NaN or infinite
    │   ├── OutOfMemoryError    the device ran out of memory
    │   ├── DiskFullError       the disk filled up
    │   └── VerificationError   a merged model that is not the adapted one
    └── Interrupted             exit 130, 143 or 129: SIGINT, SIGTERM or SIGHUP, state saved

An error holds one problem or several. A problem says where, what, and what to do.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: `file`, `file:line` or `file:line:column` (both from 1), or the name of an override.
        key: The dotted config key or the field of a row that is at fault.
        parameter: The parameter of `loraft.api`'s functions that is at fault.

    Message and remedy put what is called in Python in backticks: `batch_size`, `base_model=MODEL`,
    `loraft.train(CONFIG, resume=True)`. The command line says it by its options.
    """

    message: str
    where: str | None = None
    key: str | None = None
    remedy: str | None = None
    parameter: str | None = None

    @property
    def place(self) -> str:
        """Where it is and the key, which an override has in its name already."""
        in_name = self.where is not None and self.where == f"override {self.key}=…"
        return " ".join(part for part in (self.where, self.parameter, None if in_name else self.key) if part)

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  {self.remedy}" if self.remedy else text

    def as_dict(self) -> dict[str, str | None]:
        """The problem as JSON shows it."""
        said = asdict(self)
        return said if self.parameter else {name: said[name] for name in said if name != "parameter"}


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or what it is called."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class LoraftError(Exception):
    """The root of the tree; carries at least one `Problem`."""

    exit_code: int = 3
    told_by_main: bool = False
    """Every rank that trains the run raises the same, and the first one tells it."""

    def __init__(
        self,
        message: str,
        *,
        where: str | Path | None = None,
        key: str | None = None,
        remedy: str | None = None,
        parameter: str | None = None,
    ) -> None:
        place = str(where) if isinstance(where, Path) else where
        self.problems: tuple[Problem, ...] = (Problem(message, place, key, remedy, parameter),)
        super().__init__(str(self.problems[0]))

    @classmethod
    def several(cls, problems: Iterable[Problem]) -> LoraftError:
        """An error of this class that holds every one of `problems` (at least one)."""
        found = tuple(problems)
        error = cls(found[0].message)
        error.problems = found
        error.args = ("\n".join(str(problem) for problem in found),)
        return error

    @property
    def in_short(self) -> str:
        """The message of the first problem, and how many more there are."""
        first, *others = self.problems
        return first.message + (f", and {len(others)} more of the kind" if others else "")

    def __reduce__(self) -> tuple[Any, ...]:
        """An error goes from process to process with its problems, however it was made."""
        return _remade, (type(self), self.args, vars(self))

    def as_json(self) -> str:
        """The error for another process, which reads it by `from_json`: its class is the nearest of this module."""
        kind = next(each for each in type(self).__mro__ if each.__module__ == __name__)
        besides = {name: value for name, value in vars(self).items() if name != "problems" and not name.startswith("_")}
        problems = [asdict(problem) for problem in self.problems]
        return json.dumps({"kind": kind.__name__, "args": self.args, "problems": problems, "besides": besides})

    @staticmethod
    def from_json(text: str) -> LoraftError:
        """The error that `as_json` made text of."""
        said = json.loads(text)
        kind: type[LoraftError] = globals()[said["kind"]]
        problems = tuple(Problem(**each) for each in said["problems"])
        besides = {name: tuple(value) if isinstance(value, list) else value for name, value in said["besides"].items()}
        return _remade(kind, tuple(said["args"]), {**besides, "problems": problems})


def _remade(kind: type[LoraftError], args: tuple[str, ...], attributes: dict[str, Any]) -> LoraftError:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


class InvalidInputError(LoraftError):
    """The input is wrong, or foreseen not to work; nothing was changed. Exit code 2."""

    exit_code = 2


class ConfigError(InvalidInputError):
    """The YAML file or a `key=value` override is wrong."""


class DataError(InvalidInputError):
    """A data file cannot be read, or its rows cannot be used."""


class ModelError(InvalidInputError):
    """A base model, its files or its tokenizer cannot be used."""


class AdapterError(InvalidInputError):
    """An adapter's targets match nothing, or its files do not fit the base."""


class RunFolderError(InvalidInputError):
    """The folder of a run is taken, missing or damaged."""


class ResourceError(InvalidInputError):
    """Memory or disk is foreseen to be too small."""


class RunError(LoraftError):
    """It went wrong while running. Exit code 3."""


class LostRankError(RunError):
    """One of the processes that train together has gone, or does not answer.

    Attributes:
        silent: The processes of this machine that do not answer, which may be there all the same.
    """

    silent: tuple[int, ...] = ()

    def __init__(self, message: str, *, exit_code: int = 3, **place: Any) -> None:
        super().__init__(message, **place)
        self.exit_code = exit_code


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite."""


class OutOfMemoryError(RunError):
    """The device ran out of memory."""


class DiskFullError(RunError):
    """The disk filled up while something was written."""


class VerificationError(RunError):
    """A merged model does not compute what the adapter on its base does."""


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask for the end."""


class Interrupted(LoraftError):
    """A signal asked for the end; the state was saved. Exit code 130, 143 or 129: SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, message: str, *, signal_number: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.signal_number = signal_number

    @classmethod
    def by(cls, stop: KeyboardInterrupt) -> Interrupted:
        """A signal that came where there was nothing to save."""
        return cls("stopped.", signal_number=getattr(stop, "signal_number", 2))

    @property
    def stopped_exit_code(self) -> int:
        """128 plus the signal's number, as a shell tells it."""
        return 128 + self.signal_number


EXTRAS = {
    "compressed_tensors": "compressed",
    "gguf": "gguf",
    "matplotlib": "plot",
    "openpyxl": "xlsx",
    "rouge_score": "eval",
    "sacrebleu": "eval",
    "starlette": "serve",
    "tensorboard": "tensorboard",
    "uvicorn": "serve",
}
"""The extra that brings a package, by the name that it is imported by."""


def lacking(
    package: str, what: str, *, key: str | None = None, parameter: str | None = None, where: str | None = None
) -> Problem | None:
    """The problem that `what` needs a package of an extra that is not installed; None where it is."""
    if find_spec(package) is not None:
        return None
    message = f"{what} needs the package {package}, which is not installed"
    return Problem(message, where, key, f"pip install 'loraft[{EXTRAS[package]}]'", parameter)
