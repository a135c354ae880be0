"""Chat templates of somebody else's, rendered as transformers renders them, in bounded time and memory.

A template is a program. transformers runs it in jinja2's sandbox, which keeps it from files and from Python's insides;
here it also has a budget: of processor time, and of the characters that it makes. Loops, calls and filters are counted
and look at the clock; what multiplies text (products, widths, formats, replacements, joined and nested lists) is
measured before it is made. Everything else is transformers' own code: its filters, its globals, its marks.

This module knows jinja2. It refuses to know conversations.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import BuiltinMethodType, FunctionType
from typing import Any

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

__all__ = ["TemplateBoundError", "render_bounded"]

MOST_SECONDS = 1.0
"""Processor time of one rendering; it takes less than a thousandth of it."""
MOST_CHARACTERS = 30_000_000
PER_CHARACTER = 20
"""A rendering may make so many characters, and so many more for each that it is given."""
MOST_NUMBER = 100_000
"""The largest number that is a width, a count or a number of digits."""
LOOKS = 64
"""Passes of a loop between two looks at the clock."""
LINEAR = {
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "first", "float", "format",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "tojson", "trim",
    "truncate", "unique", "upper",
}  # fmt: skip
"""Filters that take no more time than their input is long; others get short ones."""
SHORT = 100_000
SMALL = 1000
"""Texts of so many characters are joined without counting: to keep many takes a list, which is counted."""


class TemplateBoundError(TemplateRuntimeError):
    """A template takes more than a rendering may take."""


class _Budget:
    """What is left to one rendering."""

    def __init__(self, given: object) -> None:
        self._until = time.thread_time() + MOST_SECONDS
        self._left = MOST_CHARACTERS
        self._given: object = given
        self._passes = 0

    def look(self) -> None:
        """Look at the clock."""
        if time.thread_time() > self._until:
            raise TemplateBoundError(f"it takes more than {MOST_SECONDS} s of processor time")

    def step(self) -> None:
        """One pass of a loop."""
        self._passes += 1
        if self._passes % LOOKS == 0:
            self._left -= LOOKS
            self.look()

    def make(self, characters: float) -> None:
        """So many characters are about to be made, or were."""
        self._left -= characters
        if self._left < 0 and self._given is not None:  # what it was given is measured only where that matters
            given, self._given = self._given, None
            self._left += PER_CHARACTER * _weight(given, self)
        if self._left < 0:
            raise TemplateBoundError(f"it makes more than {MOST_CHARACTERS:,} characters, or as many parts of lists")


BUDGET: ContextVar[_Budget] = ContextVar("BUDGET")


def _weight(value: object, budget: _Budget) -> int:
    """The characters of a value as text, about; of what lies in it several times as often as it lies there."""
    total, parts, stack = 0, 0, [value]
    while stack:
        top = stack.pop()
        parts += 1
        if isinstance(top, str | bytes):
            total += len(top)
        elif isinstance(top, int):
            total += top.bit_length() // 3
        elif isinstance(top, Mapping):
            stack += [*top.keys(), *top.values()]
        elif isinstance(top, list | tuple | set | frozenset):
            stack += top
        elif isinstance(top, Namespace):
            stack.append(object.__getattribute__(top, "_Namespace__attrs"))
        if parts % 1024 == 0:
            budget.look()
    return total + parts


class _Counted:
    """What a loop goes through, each pass counted."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        step = BUDGET.get().step
        for value in self._values:
            step()
            yield value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounding(self).visit(source), *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is not str or type(right) is not str or operator != "+":
            _before_operator(operator, left, right)
        elif len(left) + len(right) > SMALL:
            BUDGET.get().make(len(left) + len(right))
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2's
        budget = BUDGET.get()
        budget.look()
        if isinstance(__obj, BuiltinMethodType):
            args = _before_method(__obj, args, kwargs)
        elif isinstance(__obj, LoopContext):  # a loop that calls itself
            args = (_Counted(args[0]), *args[1:]) if args else args
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | bytes):
            budget.make(len(result))
        elif isinstance(result, dict | Namespace):
            budget.make(_weight(result, budget))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` of a text that a template calls; what it makes is measured before."""
        theirs = super().wrap_str_format(value)
        if theirs is None:
            return None

        @wraps(theirs)
        def bounded(*args: Any, **kwargs: Any) -> str:
            _before_format(value.__self__, [*args, *kwargs.values()])
            return theirs(*args, **kwargs)

        return bounded

    @staticmethod
    def counted(values: Any) -> _Counted:
        """The values of a loop."""
        return _Counted(values)

    @staticmethod
    def weighed(values: Any) -> Any:
        """A list, tuple or dict that the template writes."""
        budget = BUDGET.get()
        budget.make(_weight(values, budget))
        return values

    @staticmethod
    def joined(*values: Any) -> str:
        """The values of `a ~ b`."""
        return "".join(_text(value) for value in values)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a macro or a block prints; what the template prints is counted as it comes."""
        if isinstance(parts, list):
            BUDGET.get().make(sum(map(len, parts)))
        return "".join(parts)


def _printed(value: Any) -> Any:
    """A value that is printed, measured before it becomes text."""
    if not isinstance(value, str | int | float):
        budget = BUDGET.get()
        budget.make(_weight(value, budget))
    return value


class _Bounding(NodeTransformer):
    """Lets loops, lists and concatenations go through the environment."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment

    def _through(self, method: str, node: nodes.Node, arguments: Sequence[nodes.Expr]) -> nodes.Node:
        call = nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
        return call.set_lineno(node.lineno).set_environment(self._environment)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 finds it by this name
        self.generic_visit(node)
        node.iter = self._through("counted", node, [node.iter])  # type: ignore[assignment]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._through("joined", node, node.nodes)

    def _written(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._through("weighed", node, [node])

    visit_List = visit_Tuple = visit_Dict = _written  # noqa: N815


def _text(value: Any) -> str:
    budget = BUDGET.get()
    budget.make(_weight(value, budget))
    return str(value)


def _before_operator(operator: str, left: Any, right: Any) -> None:
    budget = BUDGET.get()
    if isinstance(left, int | float) and isinstance(right, int | float):
        bits = [abs(number).bit_length() if isinstance(number, int) else 1 for number in (left, right)]
        grows = {"**": bits[0] * abs(right), "*": sum(bits)}.get(operator, 0)
        if isinstance(left, int) and isinstance(right, int) and grows > MOST_NUMBER:
            raise TemplateBoundError(f"it computes a number of more than {MOST_NUMBER:,} digits")
    elif operator == "*":
        value, count = (right, left) if isinstance(left, int) else (left, right)
        budget.make(_weight(value, budget) * max(count, 0) if isinstance(count, int) else 0)
    elif operator == "+":
        budget.make(_weight((left, right), budget))
    elif operator == "%" and isinstance(left, str | bytes):
        _before_format(left, [right])


def _before_format(form: str | bytes, values: Sequence[Any]) -> None:
    """A format gives each field as often as it names it, in a width that it says or is given."""
    budget, text = BUDGET.get(), form if isinstance(form, str) else form.decode("latin-1")
    if any(int(number) > MOST_NUMBER for number in re.findall(r"[0-9]{1,4000}", text)):
        raise TemplateBoundError(f"it formats in a width of more than {MOST_NUMBER:,}")
    _refuse_large(values)
    budget.make(len(text) + (text.count("%") + text.count("{")) * _weight(list(values), budget))


def _before_replace(text: Any, values: Sequence[Any]) -> None:
    if len(values) >= 2 and isinstance(values[0], type(text)) and isinstance(values[1], type(text)):
        BUDGET.get().make(len(text) + text.count(values[0]) * len(values[1]))


def _before_join(between: Any, values: Any) -> Any:
    budget = BUDGET.get()
    listed = list(_Counted(values))
    budget.make(_weight(listed, budget) + len(listed) * len(between))
    return listed


def _refuse_large(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise TemplateBoundError(f"it gives a method or filter a number of more than {MOST_NUMBER:,}")
        if isinstance(value, list | tuple):
            _refuse_large(value)
        elif isinstance(value, dict):
            _refuse_large(value.values())


def _before_method(method: BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a method of Python's own."""
    owner, name, values = method.__self__, method.__name__, [*args, *kwargs.values()]
    if not isinstance(owner, str | bytes | int):
        return args
    budget = BUDGET.get()
    _refuse_large(values)
    if name == "replace":
        _before_replace(owner, values)
    elif name == "join" and args:
        return (_before_join(owner, args[0]), *args[1:])
    elif name in ("translate", "expandtabs"):
        widest = max(map(len, filter(_is_text, values[0].values())), default=1) if name == "translate" else 8
        budget.make(len(owner) * max(widest, *(value for value in values if isinstance(value, int)), 1))
    elif isinstance(owner, str | bytes):
        budget.make(len(owner) // 8)
    return args


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose input and numbers are measured first; `functools.wraps` keeps what jinja2 wants to be passed."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.look()
        value, *others = args[first:] or (None,)
        values = [*others, *kwargs.values()]
        if name not in {"default", "d"}:
            _refuse_large(values)
        if name == "join":
            between = values[0] if values and isinstance(values[0], str) else ""
            value = _before_join(between, value)
            args = (*args[:first], value, *others)
        elif name == "replace":
            _before_replace(str(value) if _is_text(value) else _text(value), [*map(str, values)])
        elif name == "format":
            _before_format(_text(value), values)
        elif name in ("string", "tojson", "list", "sum", "batch", "slice", "sort", "unique", "dictsort"):
            wide = max([1, *(v for v in values if isinstance(v, int)), *(len(v) for v in values if _is_text(v))])
            budget.make(_weight(value, budget) + (wide if name in ("batch", "slice") else 0))
            if name == "tojson" and wide > 100:
                raise TemplateBoundError("it writes JSON with more than 100 characters between its parts")
            if name == "tojson" and wide > 1:
                budget.make(_weight(value, budget) * wide)
        elif name == "indent":
            width = values[0] if values else 4
            budget.make(str(value).count("\n") * (len(width) if _is_text(width) else int(width)))
        elif name not in LINEAR and _weight([value, *values], budget) > SHORT:
            raise TemplateBoundError(f"it gives the filter {name} more than {SHORT:,} characters")
        result = function(*args, **kwargs)
        if isinstance(result, str):
            budget.make(len(result))
        return result

    return bounded


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    """A template as transformers compiles it, with a budget."""
    theirs = chat_template_utils._compile_jinja_template(template[:0]).environment
    environment = _Environment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        finalize=_printed,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    environment.filters = {name: _bounded_filter(name, function) for name, function in theirs.filters.items()}
    environment.globals = {name: each for name, each in theirs.globals.items() if name != "lipsum"}
    compiled = environment.from_string(template)
    root = compiled.root_render_func

    def bounded(context: Any) -> Iterator[str]:
        budget = _Budget(context.get_all())
        BUDGET.set(budget)
        for part in root(context):
            budget.make(len(part))
            yield part

    compiled.root_render_func = bounded
    return compiled


# transformers' own function, with the templates that it compiles in the sandbox above.
_theirs: Any = chat_template_utils.render_jinja_template
_render: Any = FunctionType(
    _theirs.__code__, {**_theirs.__globals__, "_compile_jinja_template": _compiled}, "render", _theirs.__defaults__
)


def render_bounded(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    tools: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, Any],
    generation_prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation as `apply_chat_template` renders it, and the spans that the template marks.

    Args:
        messages: The conversation.
        template: The template.
        tools: The tools of the conversation.
        special_tokens: The tokenizer's, by their names.
        generation_prompt: The beginning of an answer follows.
        marks: The spans of `{% generation %}` are wanted.

    Raises:
        TemplateBoundError: It takes more than a rendering may take.
        Exception: Whatever the template raises.
    """
    said = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,), spans = _render(
        [said], tools=list(tools) or None, chat_template=template, return_assistant_tokens_mask=marks,
        add_generation_prompt=generation_prompt, **special_tokens,
    )  # fmt: skip
    return text, spans[0] if spans else []
