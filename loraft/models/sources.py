"""From the name of a model to a local folder in transformers' format.

A name is a local folder, a .gguf file, `builtin:NAME` or a Hub id, looked for in that order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loraft.config.sections import ModelSection
from loraft.errors import ModelError
from loraft.io.checksums import build_once, known_sha256_of
from loraft.io.hub_files import BELOW_THE_ROOT, NETWORK_ERROR, whole_files
from loraft.io.paths import CONVERSION, HUB_ID, cache_folder, without_bars
from loraft.io.patience import is_fetched
from loraft.models.builtin import BUILTINS, Builtin, builtin_named, fetch_file, unpack
from loraft.models.gguf_import import convert
from loraft.models.remote_code import is_trusted
from loraft.models.safetensors_index import INDEX, SINGLE, holds_weights, read_headers

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt")
"""Config and tokenizer files; indexes of shards too."""
NOT_FETCHED = (BELOW_THE_ROOT, "consolidated*.safetensors")
"""The same model for other programs: a repository's folders, and Mistral's own form of the weights."""
NO_BASE = {
    "adapter_config.json": ("an adapter", "Name its base here, and the adapter in lora.start_from."),
    "adapter/adapter_config.json": ("a run", "Name its base here, and its adapter in lora.start_from: {}"),
    "model/config.json": ("a run", "Name the model that it trained: {}"),
}
"""What tells that a folder is something else, and what to name instead."""


class NoSuchModelError(ModelError):
    """There is nothing of a model's name: no folder, and nothing that the Hub gives."""


class ModelHandle:
    """The base model that a section asks for: its files are looked up once each, and what was found is handed on.

    A look-up raises what `resolve` or `resolve_tokenizer` does.
    """

    def __init__(self, section: ModelSection, tokens: tuple[int, ...] = ()) -> None:
        """Look up what a section asks for; of `tokens` an adapter has rows of its own, and the base may have none."""
        self.section = section
        self.tokens = tokens

    @classmethod
    def of(cls, model: ModelSection | ModelHandle) -> ModelHandle:
        """What was looked up already, or is to be."""
        return model if isinstance(model, ModelHandle) else cls(model)

    @cached_property
    def small_files(self) -> Path:
        """The folder with config and tokenizer; weights may be in it."""
        return resolve(self.section.name_or_path, self.section.revision, weights=False)

    @cached_property
    def folder(self) -> Path:
        """The folder with the weights too."""
        return resolve(self.section.name_or_path, self.section.revision)

    @property
    def has_weights(self) -> bool:
        """Whether the weights can be looked at; those of a Hub model may be fetched later, in part or all of them."""
        return os.path.isdir(os.path.expanduser(self.section.name_or_path)) or holds_weights(self.small_files)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer: one that is named apart, or the model's."""
        return resolve_tokenizer(self.section.tokenizer) if self.section.tokenizer else self.small_files

    def with_tokenizer(self, name: str | None) -> ModelHandle:
        """The same model with another tokenizer; None is its own."""
        other = ModelHandle(self.section.model_copy(update={"tokenizer": name}), self.tokens)
        vars(other).update({key: found for key, found in vars(self).items() if key in ("small_files", "folder")})
        return other


def resolve(name_or_path: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a base model, fetched or converted first where it must be.

    Args:
        name_or_path: A local folder, a .gguf file, `builtin:NAME`, or a Hub id.
        revision: A branch, tag or commit; of Hub models only.
        weights: False fetches only config and tokenizer files of a Hub model, and looks into no weights.

    Raises:
        ModelError: Nothing of that name, no config.json, no weights, pickled weights, a file cut short.
        ResourceError: The disk is too small for a conversion.
    """
    builtin = name_or_path.removeprefix("builtin:") if name_or_path.startswith("builtin:") else None
    # os.path asks without raising, whatever is asked for: a name may be longer than a file's can be.
    path = Path(os.path.expanduser(name_or_path))
    if revision is not None and (builtin is not None or os.path.exists(path)):
        raise ModelError("only Hub models have revisions", key="model.revision", remedy="Leave it out.")
    if builtin is not None:
        return _converted_builtin(builtin_named(builtin))
    if os.path.isfile(path):
        return _converted(path)
    is_here = os.path.isdir(path)
    folder = path if is_here else _base_from_hub(name_or_path, revision, weights=weights)
    if not (folder / "config.json").is_file():
        raise _no_base(folder, name_or_path, () if is_here else files_at_hub(name_or_path, revision))
    if not is_here and not holds_weights(folder):
        _refuse_without_weights(name_or_path, revision)
    if weights:
        read_headers(folder)
    return folder


def resolve_tokenizer(name_or_path: str) -> Path:
    """The local folder of a tokenizer that the config names apart from the model.

    Raises:
        ModelError: Nothing of that name.
    """
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path.startswith("builtin:") or os.path.isfile(path):
        return resolve(name_or_path, weights=False)
    return path if os.path.isdir(path) else _base_from_hub(name_or_path, None, weights=False, key="model.tokenizer")


def _no_base(folder: Path, name: str, at_hub: Sequence[str]) -> ModelError:
    """What a folder is that has no config.json, or a repository of the Hub with these files."""
    for inside, (kind, remedy) in NO_BASE.items():
        if (folder / inside).is_file():
            instead = remedy.format((Path(name) / inside).parent)
            return ModelError(f"is {kind}, not a base model", where=name, key="model.name_or_path", remedy=instead)
    gguf = next((file for file in at_hub if file.endswith(".gguf")), None)
    fetch = f"Fetch one of its GGUF files, and name the path that this prints: hf download {name} {gguf}"
    message = "has no config.json, so it holds no model"
    return ModelError(message, where=name, key="model.name_or_path", remedy=fetch if gguf else None)


def _converted(file: Path) -> Path:
    if file.suffix != ".gguf":
        message = "is a file, and a model is a folder, a .gguf file, builtin:NAME or a Hub id"
        remedy = f"Name the folder: {file.parent}" if file.suffix == ".safetensors" else None
        raise ModelError(message, where=file, key="model.name_or_path", remedy=remedy)
    name = f"{known_sha256_of(file)[:32]}-{file.stat().st_size}"
    return build_once(cache_folder() / CONVERSION / name, lambda folder: convert(file, folder))


def _converted_builtin(builtin: Builtin) -> Path:
    def build(folder: Path) -> None:
        fetched = folder / "fetched"
        fetched.mkdir()
        file = fetch_file(builtin, fetched)
        (unpack if file.suffix == ".zip" else convert)(file, folder)
        shutil.rmtree(fetched)

    return build_once(_place_of(builtin), build)


def _place_of(builtin: Builtin) -> Path:
    return cache_folder() / CONVERSION / f"{builtin.name}-{builtin.file_sha256[:16]}"


def at_hand(name_or_path: str) -> Path | None:
    """The folder of a model that is on this machine already; None where it would have to be fetched or converted."""
    builtin = BUILTINS.get(name_or_path.removeprefix("builtin:")) if name_or_path.startswith("builtin:") else None
    folder = Path(os.path.expanduser(name_or_path)) if builtin is None else _place_of(builtin)
    return folder if os.path.isfile(folder / "config.json") else None


def _base_from_hub(name: str, revision: str | None, *, weights: bool, key: str = "model.name_or_path") -> Path:
    code = ["*.py"] if is_trusted() else []
    return from_hub(name, revision, [*SMALL_FILES, *(["*.safetensors"] if weights else []), *code], key=key)


def from_hub(name: str, revision: str | None, patterns: Sequence[str], *, key: str = "model.name_or_path") -> Path:
    """The local folder of a Hub model, with the files at its root that `patterns` mean.

    Raises:
        ModelError: The Hub has it not, or not for this account, or cannot be reached.
    """
    if not HUB_ID.fullmatch(name):
        message = f"there is no file or folder {name!r}, and it is no Hub id"
        raise NoSuchModelError(message, key=key, remedy=_OTHERWISE)
    asked = {"revision": revision, "allow_patterns": [*patterns], "ignore_patterns": [*NOT_FETCHED]}
    try:
        with without_bars():
            return whole_files(lambda: _snapshot(name, **asked), patterns)
    except (HFValidationError, NETWORK_ERROR, OSError) as error:
        raise _not_at_hub(name, revision, key, error) from error


def _snapshot(name: str, **asked: Any) -> str:
    """A snapshot of what the Hub has; nothing is asked of it where another process of this machine just did."""
    if is_fetched():
        with suppress(LocalEntryNotFoundError):  # it keeps its cache elsewhere
            return str(snapshot_download(name, local_files_only=True, **asked))
    return str(snapshot_download(name, **asked))


_OTHERWISE = f"Without the Hub there is {', '.join(f'builtin:{name}' for name in BUILTINS)}."


def _not_at_hub(name: str, revision: str | None, key: str, error: Exception) -> ModelError:
    at = f"{name} at revision {revision}" if revision else name
    no_folder = f"there is no folder {name!r}, and"
    if isinstance(error, GatedRepoError):
        message = f"{no_folder} the Hub gives {at} only to accounts that accepted its terms"
        return ModelError(message, key=key, remedy="Accept them on its page, then run `hf auth login`.")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"the Hub's {name} has no revision {revision!r}", key="model.revision")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        message = f"{no_folder} the Hub has no such model, or not for this account"
    elif (snapshot := getattr(error, "snapshot_path", None)) is not None:
        lost = ", ".join(sorted(file.name for file in Path(snapshot).iterdir() if not file.exists()))
        message = f"{no_folder} the Hub cannot be asked for what its cache lacks of {at}: {lost or 'files'}"
    elif isinstance(error, OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE") == "1":
        message = f"{no_folder} the Hub is off (HF_HUB_OFFLINE) with no copy of {at} in its cache"
    else:
        message = f"{no_folder} the Hub cannot be reached for {at} ({_why(error)})"
    return NoSuchModelError(message, key=key, remedy=_OTHERWISE)


def _why(error: Exception) -> str:
    """What stood in the way, in a few words: what a server answered, or what its library calls it."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return f"it answers {status}" if status else type(cause).__name__


def _refuse_without_weights(name: str, revision: str | None) -> None:
    """Refuse a repository without weights that can be read, before any is fetched, by what it has instead."""
    files = files_at_hub(name, revision)
    if not files or not {SINGLE, INDEX}.isdisjoint(files):
        return
    message, remedy = f"the Hub's {name} has neither {SINGLE} nor {INDEX}", None
    if others := [file for file in files if file.endswith(".safetensors")]:
        message += f", and loraft reads no other weights, such as {others[0]}"
    elif pickled := [file for file in files if file.endswith((".bin", ".pt", ".pth"))]:
        message = f"the Hub's {name} has pickled weights only ({pickled[0]}), and loraft opens safetensors only: "
        message += "a pickle can run code"
        asked = f"{name!r}, 'OUT'" + (f", revision={revision!r}" if revision else "")
        remedy = f"Make safetensors of them, in a process that runs none: `loraft.convert({asked})`. A copy that "
        remedy += "has them is often a pull request, which is the revision refs/pr/1."
    raise ModelError(message, key="model.name_or_path", remedy=remedy)


def files_at_hub(name: str, revision: str | None) -> list[str]:
    """The files of a repository; none where the Hub does not tell."""
    try:
        return HfApi().list_repo_files(name, revision=revision)
    except (NETWORK_ERROR, OSError, HFValidationError):
        return []
