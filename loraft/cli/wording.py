"""The commands and their options, and what the library says of parameters and keys in the words of these.

Most commands read no config: there what a key says is given by a parameter, too.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache, wraps
from importlib import import_module
from inspect import Parameter, Signature, signature
from keyword import iskeyword
from typing import Annotated, Any, get_type_hints

from loraft.errors import ConfigError, LoraftError, Problem

COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("init", "Write a commented config to start with."),
    "import": ("importing", "Make a config of a file of another tool."),
    "check": ("train", "Tell everything that can be known before training."),
    "preview": ("train", "Show rows as the model will see them."),
    "train": ("train", "Fine-tune a model as the config says."),
    "evaluate": ("evaluate", "Measure a model on rows that it has not learned."),
    "report": ("report", "Tell whether a run did any good, and which key to change next."),
    "tune": ("tune", "Try rates, ranks and lengths of a run within a time."),
    "compare": ("compare", "Measure what each method costs, by a few steps of each."),
    "baseline": ("baseline", "Train an LSTM on the same rows, and compare it."),
    "merge": ("merge", "Fold an adapter into its base, and prove the result."),
    "export": ("export", "Write a model as a GGUF file, for llama.cpp and Ollama."),
    "generate": ("generate", "Answer prompts with a base, or with what was trained."),
    "chat": ("chat", "Talk with a base model, or with what was trained."),
    "serve": ("serve", "Answer OpenAI's HTTP interface, for several clients at once."),
    "predict": ("predict", "Tell the classes of texts, by a trained classifier."),
    "convert": ("convert", "Make safetensors of pickled weights, and run none."),
    "push": ("push", "Put an adapter or a model on the Hub, with its card."),
    "inspect-layers": ("inspect_layers", "Tell how a model is built, and what an adapter changed."),
    "tour": ("tour", "Show how a transformer generates and is fine-tuned."),
    "schema": ("init", "Print the JSON schema of the config, for editors."),
    "doctor": ("init", "Tell what this machine can do."),
}
"""Each command: the module of `commands` that holds it, and what the list of commands says of it."""


def function_of(name: str) -> Callable[..., None]:
    """The function of a command, as typer takes it."""
    module, _ = COMMANDS[name]
    function = name.replace("-", "_") + "_" * iskeyword(name)
    return _spread(getattr(import_module(f"loraft.cli.commands.{module}"), function))


def _spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: each parameter whose type is a group stands for the fields of that group.

    `Annotated[Group, "one other"]` takes those fields alone, in that order; the others keep their defaults.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        hint = hints[name]
        group = getattr(hint, "__origin__", hint)
        if is_dataclass(group):
            options = _options_of(group)
            groups[name] = (group, list(options) if group is hint else hint.__metadata__[0].split())
            parameters += [options[each] for each in groups[name][1]]
        else:
            parameters.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))

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


MARKED = re.compile(r"`(loraft\.[a-z_]+(?:\([^`]*\))?|[a-z_]+(?:=[^`]+)?)`")
"""What the library says of Python: a function of ours, called or not, or a parameter, with a value or without."""
BASE = ("base_model", "model", "target", "adapters", "source")
GIVEN_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("model.name_or_path", "model.revision", "model.tokenizer"), BASE),
    "model.dtype": ("dtype",),
    "quantization.type": ("quantize",),
    "quantization.compute_dtype": ("dtype",),
    **dict.fromkeys(("data", "data.train"), ("data",)),
    "data.name": ("name",),
    "data.split": ("split",),
    "data.format": ("row_format",),
    "data.columns": ("columns",),
    "data.source_lang": ("source_lang",),
    "data.target_lang": ("target_lang",),
}
"""The parameters by which a command is given what a config says under a key, the one that counts most first."""
INSTEAD: Mapping[str, str] = {
    "model.name_or_path": "Give a base model: a Hub id, a folder, a .gguf file or builtin:NAME."
}
"""What to do about a key, where the remedy is one that a config alone could take."""
KEY = re.compile(r"\b(?:model|quantization|lora|data|training|generation)\.[a-z_]+\b")


@cache
def options() -> Mapping[str, str]:
    """What each parameter of a command is called on the command line: `--batch-size`, `TARGET`."""
    found: dict[str, str] = {}
    for command in map(function_of, COMMANDS):
        for name, hint in get_type_hints(command, include_extras=True).items():
            for said in getattr(hint, "__metadata__", ()):
                first = said.default  # of an `Annotated` option it is the first of its names
                found[name] = first if isinstance(first, str) else said.metavar or name.upper()
    return found


def in_options(text: str) -> str:
    """A text whose `parameters` and `loraft.functions()` are said as one types them; other words stay as they are."""
    return MARKED.sub(lambda found: _typed(found[1]) or found[0], text)


def _typed(code: str) -> str | None:
    """A parameter, with its value or without, or a call of one of our functions; None for anything else."""
    try:
        said = ast.parse(code if code.startswith("loraft.") else f"_({code})", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    words: list[str | None]
    named: list[ast.keyword] = []
    match said:
        case ast.Attribute(attr=function):
            words = ["loraft", function.replace("_", "-")]
        case ast.Call(func=ast.Attribute(attr=function), args=values, keywords=named):
            words = ["loraft", function.replace("_", "-"), *map(_value, values)]
        case ast.Call(args=parameters, keywords=named):
            words = [options().get(ast.unparse(each)) for each in parameters]
        case _:
            return None
    words += [_given(each.arg or "", each.value) for each in named]
    return None if None in words else " ".join(filter(None, words))


def _given(name: str, value: ast.expr) -> str | None:
    """A parameter and its value.

    A switch has no value, and one that is switched off has another name; what is a list in Python is one at a time, and
    of a pair the second has an option of its own.
    """
    if isinstance(value, ast.Constant) and isinstance(value.value, bool):
        return options().get(name if value.value else f"no_{name}")
    one = name.removesuffix("s")
    match value:
        case ast.List(elts=[ast.Tuple(elts=[first, second])]):
            return f"{_given(one, first)} {_given(f'{one}_pair', second)}"
    option = options().get(one if isinstance(value, ast.List) and one in options() else name)
    return option and f"{option} {_value(value)}"


def _value(value: ast.expr) -> str:
    match value:
        case ast.Constant(value=constant):
            return shlex.quote(str(constant))
        case ast.Call(args=parts) | ast.List(elts=parts):  # of `load_config("c.yaml")` one types the file alone
            return " ".join(map(_value, parts))
        case ast.Dict(keys=keys, values=values):
            return ",".join(
                f"{_value(ours)}={_value(theirs)}" for ours, theirs in zip(keys, values, strict=True) if ours
            )
    return ast.unparse(value)


def in_words_of(parameters: Mapping[str, object], error: LoraftError) -> tuple[Problem, ...]:
    """The problems of an error, as the command calls things; keys of a config stay where it is that which is wrong."""
    problems = tuple(map(by_options, error.problems))
    if "config" in parameters or parameters.get("gradients") or isinstance(error, ConfigError):
        return problems
    return tuple(_without_keys(problem, parameters) for problem in problems)


def by_options(problem: Problem) -> Problem:
    """A problem that names options and commands instead of parameters and functions."""
    said = replace(problem, message=in_options(problem.message), remedy=problem.remedy and in_options(problem.remedy))
    if problem.parameter is None:
        return said
    option = options().get(problem.parameter, problem.parameter)
    return replace(said, parameter=None, **({"where": option} if problem.where is None else {"key": option}))


def _without_keys(problem: Problem, parameters: Mapping[str, object]) -> Problem:
    """A problem with options for keys of a config, as far as the command has them."""
    message = KEY.sub(lambda key: _option(key[0], parameters) or key[0], problem.message)
    problem = replace(problem, message=message, remedy=_remedy(problem, parameters))
    option = _option(problem.key, parameters)
    if option is None or (problem.key == "data" and problem.where != parameters.get("data")):
        return problem  # a row may have a field that is called data
    return replace(problem, **({"where": option, "key": None} if problem.where is None else {"key": option}))


def _remedy(problem: Problem, parameters: Mapping[str, object]) -> str | None:
    """The remedy with options for keys; where the command has no option for one, another remedy or none."""
    remedy = problem.remedy or ""
    for key in KEY.findall(remedy):
        option = _option(key, parameters)
        if option is None or not option.startswith("--"):
            return INSTEAD.get(problem.key or "")
        remedy = re.sub(rf"{re.escape(key)}(?:: |=)", f"{option} ", remedy).replace(key, option)
        remedy = re.sub(rf"(?<={option} ){{(.*?)}}", _in_a_word, remedy)
    return remedy or None


def _in_a_word(mapping: re.Match[str]) -> str:
    """What YAML says in braces, as an option takes it: `{source: a, target: b}` is `source=a,target=b`."""
    return mapping[1].replace(": ", "=").replace(", ", ",")


def _option(key: str | None, parameters: Mapping[str, object]) -> str | None:
    """What a key is called: the parameter that was given, or else the first that could have been."""
    names = [name for name in GIVEN_BY.get(key or "", ()) if name in parameters]
    given = [name for name in names if parameters[name]]
    return options()[(given or names)[0]] if names else None
