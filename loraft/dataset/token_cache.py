"""Rows that became tokens once, kept so that the next start finds them.

An entry is a folder named by all that its tokens depend on, with arrays and JSON in it and a manifest of their sha256.
A cache only saves time: one that cannot be written or is damaged is told, and never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.errors import DataError, DiskFullError
from loraft.io.atomic import atomic_dir
from loraft.io.checksums import sha256_of, sha256_of_facts
from loraft.io.kept_files import remove_unused
from loraft.rows.raw_rows import content_of
from loraft.tokenization.examples import Example
from loraft.version import __version__, version_of

SETTINGS = {
    "chat_template", "source_prefix", "source_lang", "target_lang", "labels", "max_length", "max_target_length",
    "on_overlength", "on_bad_row", "train_on", "split_turns", "special_tokens_in_text",
}  # fmt: skip
"""The keys of the data section that decide which tokens a row becomes; sources have their own."""
TOKENIZED_BY = ("transformers", "tokenizers", "jinja2")
"""The libraries that decide which tokens a row becomes."""


def identity_of(
    config: RunConfig,
    sources: Sequence[Sequence[DataSource]],
    contents: Sequence[Sequence[str | None]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    program: bool = True,
) -> str | None:
    """The name of the tokens that `sources` become; None where nothing tells whether they are still the same.

    `sources` are those to train on and those to evaluate on, the defaults of their section filled in, and `contents`
    their `contents_of`. Without `program` it is the name of what the tokens are made from, whatever the code.
    """
    if any(content is None for part in contents for content in part):
        return None
    try:
        template = _template(config.data.chat_template, tokenizer)
    except (OSError, UnicodeDecodeError):  # it is found, and told, on the way to tokens
        return None
    described = {
        "program": [__version__, _program(), *(version_of(name) for name in TOKENIZED_BY)] if program else None,
        "task": config.task,
        "settings": config.data.model_dump(mode="json", include=SETTINGS),
        "sources": [[_described(source) for source in part] for part in sources],
        "contents": [list(part) for part in contents],
        "template": template,
        "tokenizer": list(_facts(tokenizer)),
        "day": date.today().isoformat() if "strftime_now" in template else None,
    }
    return sha256_of_facts(described)


def _described(source: DataSource) -> dict[str, object]:
    """What a config says of a source that decides its tokens.

    Keys that an earlier version did not have stand there only where they are set: streams are told by this name.
    """
    unset = {"limit": source.limit is None, "text_by": source.text_by == "auto"}
    return source.model_dump(mode="json", exclude={"weight", *(key for key, is_so in unset.items() if is_so)})


def contents_of(sources: Sequence[DataSource], *, streaming: bool = False) -> tuple[str | None, ...]:
    """What tells whether the rows of each source, with its section's defaults, are still the same.

    None where nothing does. Where they are read as they come, a Hub dataset is told by its name alone.
    """
    return tuple(_content(source, streaming) for source in sources)


def _content(source: DataSource, streaming: bool) -> str | None:
    try:
        return content_of(source, streaming=streaming)
    except (DataError, NotImplementedError, OSError, UnicodeDecodeError):  # it is found, and told, on the way to tokens
        return None


def _template(setting: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if setting.endswith((".jinja", ".jinja2")):
        return Path(setting).expanduser().read_text(encoding="utf-8")
    return json.dumps(tokenizer.chat_template)


def _facts(tokenizer: PreTrainedTokenizerBase) -> Iterator[object]:
    """All that a tokenizer's answers depend on; whether to cut and to pad each call decides anew."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        yield hashlib.sha256(backend.to_str().encode()).hexdigest()
    else:  # Marian's and M2M100's are Python over SentencePiece
        yield _vocabulary(tokenizer)
        yield sorted(tokenizer.get_added_vocab().items())
    yield tokenizer.truncation_side
    yield type(tokenizer).__name__
    yield sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    yield list(tokenizer.model_input_names)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A sha256 of each file that holds the vocabulary."""
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        return {path.name: sha256_of(path) for path in sorted(Path(folder).iterdir())}


MAKE_TOKENS = ("rows/*.py", "tokenization/*.py", "tasks/*.py", "dataset/*.py", "figures.py")
"""The code that a row goes through on its way to tokens; `figures` tells where two of them begin to differ."""


@cache
def _program(root: Path = Path(__file__).parents[1]) -> str:
    """A sha256 over the code that makes tokens, so that a change of it is noticed between two versions too."""
    digest = hashlib.sha256()
    for path in sorted(path for files in MAKE_TOKENS for path in root.glob(files)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


KEPT, BEFORE = "rows-5", ("rows-1", "rows-2", "rows-3", "rows-4")
"""The folder of kept rows in the cache, and those of earlier versions; the number changes when an entry does."""
MOST_BYTES = 10_000_000_000
"""The longest unused entries are removed where all have more bytes."""
LISTS, NUMBERS = ("input_ids", "labels", "token_type_ids"), ("trained", "tokens", "second", "desirable")
"""What is kept of an example beside its place."""
ARRAYS, FACTS, MANIFEST = "rows.safetensors", "facts.json", "manifest.json"


class TokenCache:
    """The place of one set of rows in the cache; without a key nothing is found and nothing kept.

    Attributes:
        notes: What there is to say, a sentence each.
    """

    def __init__(self, root: Path | None, key: str | None) -> None:
        self.notes: list[str] = []
        self._folder = None if root is None or key is None else root / KEPT / key

    def find(self) -> tuple[list[Example], dict[str, Any]] | None:
        """The examples and facts that were kept; None where there are none, or they are damaged."""
        if self._folder is None or not self._folder.is_dir():
            return None
        try:
            _verify(self._folder)
            facts = json.loads((self._folder / FACTS).read_text(encoding="utf-8"))
            examples = _examples(load_file(self._folder / ARRAYS), facts["places"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self.notes.append(f"the rows kept in {self._folder.name[:12]} are damaged ({error}): they are made anew")
            shutil.rmtree(self._folder, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(self._folder)  # it was used today
        return examples, facts["facts"]

    def keep(self, examples: Sequence[Example], facts: Mapping[str, Any]) -> None:
        """Keep examples, and facts that JSON holds."""
        if self._folder is None:
            return
        described = {"places": [example.where for example in examples], "facts": facts}
        root = self._folder.parent
        try:
            root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the cache: rows are its user's alone
            root.mkdir(exist_ok=True)
            with FileLock(root / ".lock"):
                for stale in root.glob(".*.partial-*"):
                    shutil.rmtree(stale, ignore_errors=True)
                if not self._folder.is_dir():
                    with atomic_dir(self._folder) as beside:
                        save_file(_arrays(examples), beside / ARRAYS)
                        (beside / FACTS).write_text(json.dumps(described), encoding="utf-8")
                        sums = {name: sha256_of(beside / name) for name in (ARRAYS, FACTS)}
                        (beside / MANIFEST).write_text(json.dumps(sums), encoding="utf-8")
                remove_unused(root, newest=self._folder, most_bytes=MOST_BYTES)
            for earlier in BEFORE:
                shutil.rmtree(root.with_name(earlier), ignore_errors=True)
        except (OSError, SafetensorError, DiskFullError) as error:
            cause = error.__cause__ if isinstance(error, DiskFullError) else error
            reason = getattr(cause, "strerror", None) or cause
            self.notes.append(f"the tokens could not be kept for the next start: {reason}")


def _arrays(examples: Sequence[Example]) -> dict[str, np.ndarray[Any, Any]]:
    """`[examples]` of each number, -1 for None; of each list `[tokens]`, and `[examples]`, where examples end in it."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name in NUMBERS:
        numbers = (getattr(example, name) for example in examples)
        arrays[name] = np.array([-1 if number is None else number for number in numbers], np.int64)
    for name in LISTS:
        rows = [getattr(example, name) or [] for example in examples]
        flat = array("i")
        for row in rows:
            flat.extend(row)
        arrays[name] = np.array(flat, np.int32)
        arrays[f"{name}_ends"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return arrays


def _examples(arrays: Mapping[str, np.ndarray[Any, Any]], places: Sequence[str]) -> list[Example]:
    known: dict[int, int] = {}
    lists = (_rows(arrays[name], arrays[f"{name}_ends"], known) for name in LISTS)
    numbers = (arrays[name].tolist() for name in NUMBERS)
    return [
        Example(ids, labels, where, trained, tokens, types or None, second, desirable=None if good < 0 else bool(good))
        for ids, labels, types, where, trained, tokens, second, good in zip(*lists, places, *numbers, strict=True)
    ]


def _rows(flat: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], known: dict[int, int]) -> Iterable[list[int]]:
    """The rows as lists, in which equal numbers are one object, as `share_numbers` has them."""
    start = 0
    for end in ends.tolist():
        numbers = flat[start:end].tolist()
        yield list(map(known.setdefault, numbers, numbers))
        start = end


def _verify(folder: Path) -> None:
    """Raise a ValueError where a file of an entry is not what was written."""
    sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in (ARRAYS, FACTS):
        if not isinstance(sums, dict) or sha256_of(folder / name) != sums.get(name):
            raise ValueError(f"{name} is not what was written")
