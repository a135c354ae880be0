"""What a target means: a base model, an adapter, a run, a checkpoint or a config. No model is loaded here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.lora_factors import check_adapter_name
from loraft.adapters.metadata import AdapterTarget, ResolvedTarget, adapter_in, model_in
from loraft.config.choices import TASK_OF_GROUP, TaskName
from loraft.errors import AdapterError
from loraft.io.checkpoint_folders import checkpoints, newest_state
from loraft.io.checksums import RECORD, is_weights, refuse_altered
from loraft.io.hub_access import unreached
from loraft.io.hub_files import adapter_from_hub
from loraft.io.paths import HUB_ID
from loraft.models.hf_config import class_names, is_classifier
from loraft.models.load_model import load_any_config
from loraft.models.modules import is_within
from loraft.models.probe import spec_of
from loraft.tasks import TASKS


def task_of(target: ResolvedTarget) -> TaskName:
    """The task that a target was trained for, or that a base which nobody recorded anything of can do.

    Raises:
        InvalidInputError: Nothing is recorded, and the base's config cannot be read or is of no kind that loraft knows.
    """
    if target.metadata.task is not None:
        return target.metadata.task
    config = load_any_config(target.model)
    return TASK_OF_GROUP["classifier" if is_classifier(config) else spec_of(config).group]


def classes_of(target: ResolvedTarget) -> tuple[str, ...]:
    """The names of the classes in their order; none where the target is no classifier.

    An adapter that another tool wrote tells only how many there are: their names are then those of its base, where it
    has as many, or else `LABEL_0`, `LABEL_1` and so on, as transformers has it.

    Raises:
        InvalidInputError: The base's config cannot be read, or an adapter is damaged or lacks its head.
    """
    if not target.adapters:
        config = load_any_config(target.model)
        return class_names(config) if is_classifier(config) else ()
    adapter = target.adapters[0]
    if adapter.metadata.task is None or TASKS[adapter.metadata.task].generates:
        return ()
    return adapter.metadata.labels or _unnamed(adapter, target)


def _unnamed(adapter: AdapterTarget, target: ResolvedTarget) -> tuple[str, ...]:
    config = load_any_config(target.model)
    decides = spec_of(config, "classifier").classifier[-1]
    whole = read_adapter(adapter.folder).whole.items()
    count = min((len(tensor) for name, tensor in whole if is_within(name, decides) and tensor.dim() > 1), default=0)
    if not count:
        remedy = "Save it with modules_to_save, or classify with the tool that wrote it."
        message = f"it was trained to classify, and holds no {decides}"
        raise AdapterError(message, where=adapter.folder, remedy=remedy)
    named = class_names(config)
    return named if len(named) == count else tuple(f"LABEL_{number}" for number in range(count))


OF_TARGET = {"parameter": "target"}
REMEDY = "Give a model (Hub id, folder, .gguf, builtin:NAME), the folder of an adapter, run or checkpoint, or a config."


def resolve_target(
    target: str | None, adapters: Sequence[str] = (), *, base_model: str | None = None
) -> ResolvedTarget:
    """Find the base and the adapters that `target`, `adapters` and `base_model` mean.

    Beside `adapters`, `target` is the base. Where the adapter recorded its base's weights they are compared once they
    are loaded, and the base may have another name; where it did not, another name is taken from `base_model` alone.

    `adapters` are given each with a name before it or none: `NAME=DIR`. `base_model` is used whatever they name.

    Raises:
        AdapterError: If nothing is found there; it says what was looked for.
    """
    if target is None and not adapters:
        raise AdapterError("there is no model to work on", parameter="target", remedy=REMEDY)
    named = [_named(given, adapters) for given in adapters]
    if twice := sorted(name for name, often in Counter(name for name, _ in named).items() if often > 1):
        remedy = "Give each a name of its own: `adapters=['NAME=DIR']`."
        raise AdapterError(f"several adapters are called {twice[0]}", parameter="adapters", remedy=remedy)
    chosen = [_only_adapter(name, given) for name, given in named]
    if target is None:
        return _on_base(chosen, None, base_model)
    found = _found(target, OF_TARGET)
    if not chosen:
        if not found.adapters and base_model is not None:
            remedy = f"Give {base_model} as `target`."
            raise AdapterError(f"{target} is no adapter, so it has no base", parameter="base_model", remedy=remedy)
        return _on_base(found.adapters, None, base_model) if found.adapters else found
    if found.adapters:
        message = f"{target} has an adapter of its own"
        raise AdapterError(message, parameter="target", remedy="Give a base beside `adapters`.")
    if base_model is not None and base_model != target:
        message = f"{target} and {base_model} are two bases"
        raise AdapterError(message, parameter="base_model", remedy="Name one of them.")
    return _on_base(chosen, found, base_model)


def resolve_to_look(
    target: str | None, adapters: Sequence[str] = (), *, base_model: str | None = None
) -> ResolvedTarget:
    """As `resolve_target`, for those who look at adapters and run none.

    `target` may be an adapter beside others; and where the adapters' base cannot be found, the base is empty and a note
    says why.

    Raises:
        AdapterError: If nothing is found there, or two bases are named.
    """
    if target is not None and adapters and _found(target, OF_TARGET).adapters:
        return resolve_to_look(None, [target, *adapters], base_model=base_model)
    try:
        return resolve_target(target, adapters, base_model=base_model)
    except _NoBaseError as error:
        alone = _found(target, OF_TARGET).adapters if target is not None else ()
        found = alone or tuple(_only_adapter(*_named(given, adapters)) for given in adapters)
        return ResolvedTarget("", adapters=found, notes=(error.problems[0].message,))


@contextmanager
def base_named_by(found: ResolvedTarget) -> Iterator[None]:
    """What is read of a base meanwhile: where the adapter alone names it and it is nowhere, that is said.

    Raises:
        AdapterError: The Hub does not give the base either.
    """
    from loraft.models.sources import NoSuchModelError

    try:
        yield
    except NoSuchModelError as error:
        names_it = [adapter for adapter in found.adapters if adapter.base == found.base]
        if not names_it:
            raise
        raise _no_base(names_it[0], f"names the base {found.base}: {error.problems[0].message}") from error


class _NoBaseError(AdapterError):
    """The base that an adapter names is not there."""


def _named(given: str, among: Sequence[str]) -> tuple[str, str]:
    """The name and the place in a value of `adapters`; one that is given no name is called after its folder."""
    name, equals, place = given.partition("=")
    if equals and not os.path.exists(given):
        check_adapter_name(name)
        return name, place
    if len(among) == 1:
        return "default", given
    parts = [part for part in Path(given).parts if part not in ("adapter", "checkpoints")]
    called = re.sub(r"[^A-Za-z0-9_-]+", "-", parts[-1] if parts else "")[-64:].strip("-") or "adapter"
    check_adapter_name(called)
    return called, given


def _only_adapter(name: str, given: str) -> AdapterTarget:
    found = adapter_named(given, {"parameter": "adapters"}, remedy="Give a base model as `target` alone.")
    return replace(found, name=name)


def or_unseen(given: str) -> str:
    """What else may be so of a name that nothing was found by: of one of the Hub, that nobody answered."""
    return "" if os.path.exists(given) or given.startswith("builtin:") else f", or {unreached()}"


def adapter_named(given: str, named_by: Mapping[str, str], *, remedy: str) -> AdapterTarget:
    """The adapter that a folder, run, checkpoint, config or Hub id means.

    For errors `named_by` is the parameter or the key of a config that names it, and `remedy` is what to do.

    Raises:
        AdapterError: It is none.
    """
    found = _found(given, named_by)
    if not found.adapters:
        raise AdapterError(f"{given} is no adapter{or_unseen(given)}", **named_by, remedy=remedy)
    return found.adapters[0]


def _on_base(adapters: Sequence[AdapterTarget], given: ResolvedTarget | None, base_model: str | None) -> ResolvedTarget:
    """The adapters on the base that is asked for, or on the one that they name themselves."""
    base = base_model if base_model is not None else given.base if given is not None else None
    notes = [note for adapter in adapters for note in _gone_on_with(adapter.folder)]
    if base is None:
        first = _with_a_base(adapters[0])
        if other := next((adapter for adapter in adapters if not _same_base(adapter, first)), None):
            message = f"{other.name} names the base {other.base or '(none)'}, and {first.name} names {first.base}"
            raise AdapterError(message, parameter="adapters", remedy="Say with `base_model` which one to use.")
        return ResolvedTarget(first.base, first.revision, tuple(adapters), notes=tuple(notes))
    differing = [adapter for adapter in adapters if not _is_called(adapter.base, base)]
    if base_model is None and (unknown := [adapter for adapter in differing if adapter.fingerprint is None]):
        message = f"the adapter names {unknown[0].base or 'no model'} as its base, and not {base}"
        remedy = f"Where it is to be used on {base} all the same: `base_model={base!r}`"
        raise AdapterError(message, where=unknown[0].folder, key="base_model_name_or_path", remedy=remedy)
    revision = adapters[0].revision if not differing else None
    notes += [
        f"The adapter {adapter.folder} names {adapter.base or 'no model'} as its base; {base} is used."
        for adapter in differing
    ]
    return ResolvedTarget(base, revision, tuple(adapters), notes=tuple(notes))


def _is_called(named: str, base: str) -> bool:
    """Whether two names of a base are one, or two paths of one folder: peft writes the whole path."""
    paths = [os.path.expanduser(name) for name in (named, base)]
    return named == base or (all(map(os.path.exists, paths)) and os.path.samefile(*paths))


def _same_base(one: AdapterTarget, other: AdapterTarget) -> bool:
    if one.fingerprint is not None and other.fingerprint is not None:
        return one.fingerprint == other.fingerprint
    return (one.base, one.revision) == (other.base, other.revision)


def _found(given: str, named_by: Mapping[str, str]) -> ResolvedTarget:
    path = Path(os.path.expanduser(given))
    if path.suffix in (".yaml", ".yml") and not os.path.isdir(path):
        return _from_config(path, named_by)
    # os.path asks without raising, whatever is asked for: a name may be longer than a file's can be.
    if os.path.isdir(path):
        return _from_folder(path)
    if os.path.isfile(path) or given.startswith("builtin:"):
        return ResolvedTarget(given)
    if _is_no_hub_id(given):
        raise AdapterError(f"there is no file or folder {given}, and it is no Hub id", **named_by, remedy=REMEDY)
    fetched = adapter_from_hub(given)
    return adapter_in(fetched) if fetched is not None else ResolvedTarget(given)


def _from_config(path: Path, named_by: Mapping[str, str]) -> ResolvedTarget:
    from loraft.config.config_file import load_config

    output = load_config(path).training.output_dir
    folder = Path(output).expanduser() if output else _newest_run(path.stem)
    if folder is None or not folder.is_dir():
        missing = output or f"runs/{path.stem}-N"
        raise AdapterError(f"{path} has no run yet: there is no {missing}", **named_by, remedy="Train it first.")
    return _from_folder(folder)


def _newest_run(stem: str) -> Path | None:
    runs = ((run.name.removeprefix(f"{stem}-"), run) for run in Path("runs").glob(f"{stem}-*") if run.is_dir())
    return max(((int(number), run) for number, run in runs if number.isdecimal()), default=(0, None))[1]


def _from_folder(folder: Path) -> ResolvedTarget:
    """What a folder holds: an adapter, a model trained whole, a base, or a run or checkpoint with one inside."""
    for candidate in (folder, folder / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return adapter_in(candidate)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            found = model_in(candidate)
            return replace(found, notes=(*found.notes, *_gone_on_with(candidate)))
    for candidate in (folder, folder / "adapter", folder / "model"):
        if (candidate / RECORD).is_file():  # it was one of them, and has lost what tells
            refuse_altered(candidate, lambda name: not is_weights(name), AdapterError)
    if (folder / "parts").is_dir():
        message = "the checkpoint holds a model in the parts of the ranks that trained it"
        go_on = _going_on(folder.absolute().parents[1])
        remedy = f"Go on with its run, which saves the whole model at its end: {go_on}"
        raise AdapterError(message, where=folder, remedy=remedy)
    if saved := checkpoints(folder / "checkpoints"):
        go_on = _going_on(folder)
        remedy = f"Name a checkpoint ({saved[0]}), or go on: {go_on}"
        raise AdapterError("the run has not saved its result", where=folder, remedy=remedy)
    looked_for = "adapter_config.json, adapter/adapter_config.json, config.json, model/config.json"
    message = f"there is neither a model nor an adapter (looked for {looked_for})"
    raise AdapterError(message, where=folder, remedy=REMEDY)


def _going_on(run: Path) -> str:
    return f"`loraft.train(loraft.load_config({str(run / 'config.yaml')!r}), resume=True)`"


def _gone_on_with(result: Path) -> Iterator[str]:
    """A sentence where a run took more steps since it saved its result, and has not ended: it is that of before."""
    newest, state = newest_state(result.parent)
    if state.get("finished") is False:
        yield f"{result} is what the run came to before it was gone on with; its newest checkpoint is {newest}"


def _with_a_base(found: AdapterTarget) -> AdapterTarget:
    """Refuse an adapter whose own base cannot be found; with another base given it does not matter."""
    gone = bool(found.base) and _is_no_hub_id(found.base) and not os.path.exists(os.path.expanduser(found.base))
    if found.base and not gone:
        return found
    raise _no_base(found, f"names the base {found.base}, which is not there" if gone else "does not name a base model")


def _no_base(adapter: AdapterTarget, what: str) -> _NoBaseError:
    remedy = "Say which one to use: `base_model=MODEL`."
    if adapter.base and not adapter.base.startswith(("/", "~", "builtin:")):
        remedy += " A relative path is that of the folder where it was trained."
    return _NoBaseError(f"adapter_config.json {what}", where=adapter.folder, remedy=remedy)


def _is_no_hub_id(name: str) -> bool:
    """Whether a path was meant: a Hub id looks like one, but its first part is no folder here."""
    if name.startswith("builtin:"):
        return False
    parent = Path(name).parent
    is_path = name.startswith((".", "/", "~")) or name.endswith(".gguf") or (parent != Path() and os.path.isdir(parent))
    return is_path or not HUB_ID.fullmatch(name)
