"""Every command by its name, and its function as typer takes it: none is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("init", "Write a commented config to start with."),
    "check": ("train", "Tell everything that can be known before training."),
    "preview": ("preview", "Show rows as the model will see them."),
    "train": ("train", "Fine-tune a model as the config says."),
    "evaluate": ("evaluate", "Measure a model on rows that it has not learned."),
    "merge": ("merge", "Fold an adapter into its base, and prove the result."),
    "generate": ("generate", "Answer prompts with a base, or with what was trained."),
    "chat": ("chat", "Talk with a base model, or with what was trained."),
    "predict": ("predict", "Tell the classes of texts, by a trained classifier."),
    "inspect-layers": ("inspect_layers", "Tell how a model is built, and what an adapter changed."),
    "schema": ("doctor", "Print the JSON schema of the config, for editors."),
    "doctor": ("doctor", "Tell what this machine can do."),
}
"""Each command: the module of `commands` that holds it, and what the list of commands says of it."""


def function_of(name: str) -> Callable[..., None]:
    """The function of a command, as typer takes it."""
    module, _ = COMMANDS[name]
    return _spread(getattr(import_module(f"loraft.cli.commands.{module}"), name.replace("-", "_")))


def _spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: each parameter whose type is a group stands for the fields of that group.

    `Annotated[Group, "one other"]` takes those fields alone, in that order; the others keep their defaults.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        group = getattr(hints[name], "__origin__", hints[name])
        if not is_dataclass(group):
            parameters.append(parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY))
            continue
        options = _options_of(group)
        taken = hints[name].__metadata__[0].split() if group is not hints[name] else list(options)
        groups[name] = (group, taken)
        parameters += [options[each] for each in taken]

    @wraps(command)
    def run(**given: Any) -> None:
        packed = {name: group(**{each: given.pop(each) for each in taken}) for name, (group, taken) in groups.items()}
        command(**packed, **given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options_of(group: Any) -> dict[str, Parameter]:
    """The fields of a group by name, as parameters that typer reads."""
    hints, found = get_type_hints(group), {}
    for each in fields(group):
        names = each.metadata["names"]
        named = () if names is None else names or (f"--{each.name.replace('_', '-')}",)
        hint: Any = Annotated[hints[each.name], each.metadata["typer"](*named)]
        default = Parameter.empty if each.default is MISSING else each.default
        found[each.name] = Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
    return found
