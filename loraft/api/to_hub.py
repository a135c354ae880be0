"""What was trained, put on the Hub: the files that others load, and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from loraft.adapters.adapter_config import ADAPTER_CONFIG
from loraft.adapters.resolve_target import resolve_target
from loraft.errors import AdapterError, ConfigError, LoraftError, ModelError, Problem, RunError
from loraft.events import Observer, Progress, ignored, tell
from loraft.io.checksums import altered_settings, refuse_altered
from loraft.io.hub_access import WITHOUT_TOKEN, hub_problems
from loraft.io.hub_files import NETWORK_ERROR
from loraft.io.secrets import secret_in
from loraft.training.trainer import TrainResult

LOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.spm", "README.md", "merges.txt", "vocab.txt")
"""What transformers, peft and loraft read, and the card."""


@dataclass(frozen=True)
class Pushed:
    """What was put on the Hub, or would be.

    Attributes:
        files: Their sizes in bytes, by name.
        left: What else lies in the folder, and stays here.
        address: Where it is to be seen; None for a dry run.
    """

    repo: str
    folder: Path
    files: dict[str, int]
    left: tuple[str, ...]
    address: str | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        return {**asdict(self), "folder": str(self.folder), "bytes": sum(self.files.values())}


def push(
    target: str,
    repo: str,
    *,
    public: bool = False,
    revision: str = "main",
    message: str = "Upload by loraft",
    dry_run: bool = False,
    observer: Observer = ignored,
) -> Pushed:
    """Put an adapter, or a model that was trained or merged, into a repository of the Hub, in one commit.

    Args:
        target: A run, an adapter, a checkpoint or the folder of a model.
        repo: NAME or OWNER/NAME; it is made where it is not there.
        public: A repository that is made can be seen by all; else by its owner alone.
        revision: The branch; it is made where it is not there.
        message: What the commit says.
        dry_run: Look at all of it, and ask the Hub for nothing.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is sent: nothing to push, a file that is damaged or holds a secret, nobody is
            logged in.
        RunError: The Hub refuses, or cannot be reached; nothing of a commit is there then.
    """
    if problems := hub_problems(repo, Problem("", parameter="repo"), asks=not dry_run):
        raise ConfigError.several(problems)
    folder = pushed_folder(target)
    refuse_altered(folder, lambda _: True, AdapterError)
    files = sorted(each for each in folder.iterdir() if each.is_file() and is_loaded(each.name))
    notes = (*altered_settings(folder), *_notes(folder, _without_secrets(files)))
    left = tuple(sorted({each.name for each in folder.iterdir()} - {each.name for each in files}))
    told = Pushed(repo, folder, {each.name: each.stat().st_size for each in files}, left, None, notes)
    if dry_run:
        return told
    observer(Progress("files sent", 0, len(files)))
    try:
        api = HfApi()
        named = api.create_repo(repo, private=not public, exist_ok=True).repo_id
        if revision != "main":
            api.create_branch(named, branch=revision, exist_ok=True)
        sent = [CommitOperationAdd(each.name, each) for each in files]
        done = api.create_commit(named, sent, commit_message=message, revision=revision)
    except (NETWORK_ERROR, OfflineModeIsEnabled, OSError) as error:
        raise _refused(repo, folder, error) from error
    observer(Progress("files sent", len(files), len(files)))
    return Pushed(named, folder, told.files, left, done.commit_url.partition("/commit/")[0], notes)


def push_result(result: TrainResult, repo: str | None, observer: Observer) -> TrainResult:
    """What came of a run, put on the Hub where it names a place; one that is not taken has ended all the same."""
    run = str(result.run_folder)
    if repo is None:
        return result
    try:
        done = push(run, repo, observer=observer)
    except LoraftError as error:
        message, again = error.problems[0].message, f"Push it by `loraft.push({run!r}, {repo!r})`."
        raise RunError(f"the run is saved, but not pushed: {message}", where=run, remedy=again) from error
    tell(observer, f"pushed to {done.address}", *done.notes)
    return result


def is_loaded(name: str) -> bool:
    """Whether a file is one that others load."""
    return any(fnmatch(name, pattern) for pattern in LOADED)


def pushed_folder(target: str) -> Path:
    """The folder of what a target means: that of its adapter, or of a model that was trained or merged.

    Raises:
        InvalidInputError: There is none on this machine.
    """
    found = resolve_target(target)
    folder = found.adapter or Path(found.base)
    if not folder.is_dir() or "/snapshots/" in folder.as_posix():
        message = f"{target} is no folder of this machine with what was trained"
        raise ModelError(message, parameter="target", remedy="Name a run, an adapter or a merged model.")
    return folder


def _without_secrets(files: Sequence[Path]) -> dict[str, str]:
    """The texts among the files by name; one that holds a secret, or names a place on this machine, is refused."""
    texts = {each.name: each.read_text("utf-8", "replace") for each in files if each.suffix != ".safetensors"}
    problems = [
        Problem(f"holds {kind}", where=str(each), remedy="Take it out; and whoever may have seen it, change it.")
        for each in files
        if (kind := secret_in(texts.get(each.name, "")))
    ]
    if problems:
        raise AdapterError.several(problems)
    return texts


def _notes(folder: Path, texts: dict[str, str]) -> tuple[str, ...]:
    """What there is to say of what others will find.

    Raises:
        AdapterError: The adapter names a base by a path, which tells of this machine and which nobody else has.
    """
    if ADAPTER_CONFIG not in texts:
        return ()
    base = str(json.loads(texts[ADAPTER_CONFIG]).get("base_model_name_or_path"))
    if base.startswith("builtin:"):
        return (f"the adapter's base is {base}, which plain PEFT does not find: name the Hub's in {ADAPTER_CONFIG}",)
    if Path(base).is_absolute() or Path(base).is_dir():
        remedy = f"Write the base's name on the Hub as base_model_name_or_path in {folder / ADAPTER_CONFIG}."
        raise AdapterError(f"names its base by a path of this machine, {base}", where=folder, remedy=remedy)
    return ()


def _refused(repo: str, folder: Path, error: Exception) -> RunError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reasons = {
        401: (f"the Hub does not accept the token, or {repo} is not yours", WITHOUT_TOKEN),
        403: (f"the token may not write to {repo}", "Take a token with the right to write."),
    }
    said = getattr(error, "server_message", None) or str(error).split("\n")[0] or type(error).__name__
    otherwise = f"the Hub did not take it: {said}", "Try again; nothing of it is there."
    message, remedy = reasons.get(status or 0, otherwise)
    return RunError(message, where=folder, remedy=remedy)
