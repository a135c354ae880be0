"""Every command by its name, and where its function is: none of them is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

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
    from loraft.cli.options import spread

    module, _ = COMMANDS[name]
    return spread(getattr(import_module(f"loraft.cli.commands.{module}"), name.replace("-", "_")))
