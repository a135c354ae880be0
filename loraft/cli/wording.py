"""What is wrong, in the words of a command that reads no config.

What loads models and reads rows calls everything by the keys of a config, and most commands are given none: there the
same thing is TARGET, or an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from loraft.errors import ConfigError, LoraftError, Problem

OPTIONS: Mapping[str, str] = {
    "base_model": "--base-model", "model": "--model", "target": "TARGET", "adapter": "--adapter", "dtype": "--dtype",
    "quantize": "--quantize", "data": "--data", "split": "--split", "row_format": "--format", "columns": "--columns",
    "source_lang": "--source-lang", "target_lang": "--target-lang", "task": "--task", "method": "--method",
}  # fmt: skip
"""What the parameters of commands are called on the command line."""
BASE = ("base_model", "model", "target", "adapter")
GIVEN_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("model.name_or_path", "model.revision", "model.tokenizer"), BASE),
    "model.dtype": ("dtype",),
    "quantization.compute_dtype": ("dtype",),
    **dict.fromkeys(("data", "data.train"), ("data",)),
    "data.split": ("split",),
    "data.format": ("row_format",),
    "data.columns": ("columns",),
    "data.source_lang": ("source_lang",),
    "data.target_lang": ("target_lang",),
}
"""The parameters by which a command is given what a config says under a key, the one that counts most first."""
INSTEAD: Mapping[str, str] = {
    "model.name_or_path": "Give a base model: a Hub id, a folder, a .gguf file or builtin:NAME.",
}
"""What to do about a key, where the remedy is one that a config alone could take."""
KEY = re.compile(r"\b(?:model|quantization|lora|data|training|generation)\.[a-z_]+\b")


def in_words_of(parameters: Mapping[str, object], error: LoraftError) -> tuple[Problem, ...]:
    """The problems of an error, as the command with these parameters calls things.

    Those of a config stay as they are, and so do all where the command was given one to work by.
    """
    if "config" in parameters or isinstance(error, ConfigError):
        return error.problems
    return tuple(_translated(problem, parameters) for problem in error.problems)


def _translated(problem: Problem, parameters: Mapping[str, object]) -> Problem:
    remedy = _remedy(problem, parameters)
    option = _option(problem.key, parameters)
    if option is None or (problem.key == "data" and problem.where != parameters.get("data")):
        return replace(problem, remedy=remedy)  # a row may have a field that is called data
    if problem.where is None:
        return replace(problem, where=option, key=None, remedy=remedy)
    return replace(problem, key=option, remedy=remedy)


def _remedy(problem: Problem, parameters: Mapping[str, object]) -> str | None:
    """The remedy with options for keys; where the command has no option for one, another remedy or none."""
    remedy = problem.remedy or ""
    for key in KEY.findall(remedy):
        option = _option(key, parameters)
        if option is None or not option.startswith("--"):
            return INSTEAD.get(problem.key or "")
        remedy = re.sub(rf"{re.escape(key)}(?:: |=)", f"{option} ", remedy).replace(key, option)
    return remedy or None


def _option(key: str | None, parameters: Mapping[str, object]) -> str | None:
    """What a key is called: the parameter that was given, or else the first that could have been."""
    names = [name for name in GIVEN_BY.get(key or "", ()) if name in parameters]
    given = [name for name in names if parameters[name]]
    return OPTIONS[(given or names)[0]] if names else None
