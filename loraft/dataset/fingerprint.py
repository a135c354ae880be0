"""What the tokens of a run depend on, as one name: the same name, the same tokens.

The fingerprint covers the bytes of the files, the settings, the chat template, the tokenizer's content, the day where
a template prints it, and the program itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.io.checksums import sha256_of, sha256_of_facts
from loraft.rows.raw_rows import content_of
from loraft.version import __version__

SETTINGS = {
    "chat_template", "source_prefix", "source_lang", "target_lang", "labels", "max_length", "max_target_length",
    "on_overlength", "on_bad_row", "train_on", "split_turns", "special_tokens_in_text",
}  # fmt: skip
"""The keys of the data section that decide which tokens a row becomes; sources have their own."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")


def identity_of(
    config: RunConfig,
    sources: Sequence[Sequence[DataSource]],
    contents: Sequence[Sequence[str | None]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    program: bool = True,
) -> str | None:
    """The name of the tokens that `sources` become; None where nothing tells whether they are still the same.

    Args:
        config: The run's.
        sources: Those to train on and those to evaluate on, the defaults of their section filled in.
        contents: Their `contents_of`.
        tokenizer: The model's.
        program: The code has a say too; without it the name is that of what the tokens are made from.
    """
    if any(content is None for part in contents for content in part):
        return None
    try:
        template = _template(config.data.chat_template, tokenizer)
    except (OSError, UnicodeDecodeError):  # it is found, and told, on the way to tokens
        return None
    described = {
        "program": [__version__, _program(), *(version(name) for name in LIBRARIES)] if program else None,
        "task": config.task,
        "settings": config.data.model_dump(mode="json", include=SETTINGS),
        "sources": [[source.model_dump(mode="json", exclude={"weight"}) for source in part] for part in sources],
        "contents": [list(part) for part in contents],
        "template": template,
        "tokenizer": list(_facts(tokenizer)),
        "day": date.today().isoformat() if "strftime_now" in template else None,
    }
    return sha256_of_facts(described)


def contents_of(sources: Sequence[DataSource], *, streaming: bool = False) -> tuple[str | None, ...]:
    """What tells whether the rows of each source are still the same; None where nothing does.

    Args:
        sources: The sources, the defaults of their section filled in.
        streaming: They are read as they come: a Hub dataset is told by its name alone.
    """
    return tuple(_content(source, streaming) for source in sources)


def _content(source: DataSource, streaming: bool) -> str | None:
    try:
        return content_of(source, streaming=streaming)
    except (DataError, NotImplementedError, OSError, UnicodeDecodeError):  # as above
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


@cache
def _program() -> str:
    """A sha256 over the code that makes tokens, so that a change of it is noticed between two versions too."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
