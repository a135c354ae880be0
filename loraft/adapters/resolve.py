"""TARGET, the word of the commands, resolved: a base model, an adapter, a run, a checkpoint or a config.

This module knows where a run keeps what it trained. It refuses to load anything, and torch with it: a wrong
TARGET is told before the libraries are imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from loraft.adapters.folders import read_json
from loraft.config.schema import ModelSection, QuantizationSection
from loraft.errors import AdapterError

__all__ = ["Target", "resolve_target"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
REMEDY = "Give a model (Hub id, folder, .gguf, builtin:NAME), the folder of an adapter, run or checkpoint, or a config."


@dataclass(frozen=True)
class Target:
    """What a command works on.

    Attributes:
        base: The base model, as a config would name it.
        revision: Its revision on the Hub.
        adapter: The folder of the adapter, or None for a model without one.
        quantization: How the base was stored while the adapter was trained, for `method: qlora`.
        tokenizer: The folder with the tokenizer that was trained with; None is the base's own.
        system_prompt: The system prompt that it was trained with.
        notes: What a person should know, one sentence each.
    """

    base: str
    revision: str | None = None
    adapter: Path | None = None
    quantization: QuantizationSection | None = None
    tokenizer: str | None = None
    system_prompt: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def model_section(self) -> ModelSection:
        """The base as the `model` section of a config."""
        return ModelSection(name_or_path=self.base, revision=self.revision, tokenizer=self.tokenizer)


def resolve_target(target: str | None, adapter: str | None = None) -> Target:
    """Find the base and the adapter that TARGET and `--adapter` mean.

    With `--adapter`, TARGET is the base and goes before the one that the adapter names; without TARGET the adapter's
    own is taken.

    Raises:
        AdapterError: If nothing is found there; it says what was looked for.
    """
    if target is None and adapter is None:
        raise AdapterError("there is no model to work on", where="TARGET", remedy=REMEDY)
    if adapter is None:
        assert target is not None
        return _with_a_base(_found(target, "TARGET"))
    of_adapter = _found(adapter, "--adapter")
    if of_adapter.adapter is None:
        raise AdapterError(f"{adapter} is no adapter", where="--adapter", remedy="Give a base model as TARGET alone.")
    if target is None:
        return _with_a_base(of_adapter)
    of_base = _found(target, "TARGET")
    if of_base.adapter is not None:
        raise AdapterError(
            f"{target} has an adapter of its own", where="TARGET", remedy="Give a base beside --adapter."
        )
    return _on_another_base(of_adapter, target)


def _on_another_base(found: Target, base: str) -> Target:
    if base == found.base:
        return found
    named = found.base or "no model"
    return replace(found, base=base, revision=None, notes=(f"The adapter names {named} as its base; {base} is used.",))


def _found(given: str, where: str) -> Target:
    path = Path(given).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _from_config(path, where)
    if path.is_dir():
        return _from_folder(path, where)
    if path.is_file() or given.startswith("builtin:"):
        return Target(given)
    if _is_path(given) or not HUB_ID.fullmatch(given):
        raise AdapterError(f"there is no file or folder {given}, and it is no Hub id", where=where, remedy=REMEDY)
    return Target(given)


def _from_config(path: Path, where: str) -> Target:
    from loraft.config.files import load_config

    output = load_config(path).training.output_dir
    folder = Path(output) if output else _newest_run(path.stem)
    if folder is None or not folder.is_dir():
        missing = output or f"runs/{path.stem}-N"
        raise AdapterError(f"{path} has no run yet: there is no {missing}", where=where, remedy="Train it first.")
    return _from_folder(folder, where)


def _newest_run(stem: str) -> Path | None:
    numbered = [
        (int(run.name.rpartition("-")[2]), run) for run in Path("runs").glob(f"{stem}-*") if _is_numbered(run, stem)
    ]
    return max(numbered)[1] if numbered else None


def _is_numbered(run: Path, stem: str) -> bool:
    return run.is_dir() and run.name.removeprefix(f"{stem}-").isdecimal()


def _from_folder(folder: Path, where: str) -> Target:
    """What a folder holds: an adapter, a model trained whole, a base, or a run or checkpoint with one inside."""
    for candidate in (folder, folder / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return _from_adapter(candidate)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return Target(str(candidate), system_prompt=_system_prompt(_record(candidate)))
    checkpoints = sorted(path for path in folder.glob("checkpoints/step-*") if path.is_dir())
    if checkpoints:
        remedy = f"Its newest checkpoint is {checkpoints[-1]}."
        raise AdapterError("the run has not saved its result", where=str(folder), remedy=remedy)
    looked_for = "adapter_config.json, adapter/adapter_config.json, config.json, model/config.json"
    raise AdapterError(
        f"there is neither a model nor an adapter (looked for {looked_for})", where=str(folder), remedy=REMEDY
    )


def _from_adapter(folder: Path) -> Target:
    config = read_json(folder / "adapter_config.json")
    record = _record(folder)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Target(
        base=base if isinstance(base, str) else "",
        revision=revision if isinstance(revision, str) else None,
        adapter=folder,
        quantization=_quantization(record.get("quantization"), folder),
        tokenizer=str(folder) if (folder / "tokenizer_config.json").is_file() else None,
        system_prompt=_system_prompt(record),
    )


def _record(folder: Path) -> dict[str, object]:
    """What loraft wrote beside the weights; nothing for a folder of another tool."""
    return read_json(folder / "loraft.json") if (folder / "loraft.json").is_file() else {}


def _system_prompt(record: dict[str, object]) -> str | None:
    prompt = record.get("system_prompt")
    return prompt if isinstance(prompt, str) else None


def _quantization(recorded: object, folder: Path) -> QuantizationSection | None:
    try:
        return QuantizationSection.model_validate(recorded) if recorded else None
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        raise AdapterError(detail, where=str(folder / "loraft.json"), key="quantization") from error


def _with_a_base(found: Target) -> Target:
    """Refuse an adapter whose own base cannot be found; with a base given as TARGET it does not matter."""
    gone = _is_path(found.base) and not Path(found.base).expanduser().exists()
    if found.adapter is None or (found.base and not gone):
        return found
    what = f"names the base {found.base}, which is not there" if gone else "does not name a base model"
    raise AdapterError(
        f"adapter_config.json {what}",
        where=str(found.adapter),
        remedy="Give the base as TARGET, and this folder with --adapter.",
    )


def _is_path(name: str) -> bool:
    """Whether a path was meant: a Hub id looks like one, but its first part is no folder here."""
    if name.startswith("builtin:"):
        return False
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or _has_a_parent_here(Path(name))


def _has_a_parent_here(path: Path) -> bool:
    return path.parent != Path() and path.parent.is_dir()
