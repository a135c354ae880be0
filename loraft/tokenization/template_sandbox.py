"""Chat templates of somebody else's, rendered as transformers renders them, in bounded time and memory.

transformers runs a template in jinja2's sandbox, which keeps it from files and from Python's insides; here loops,
calls, operators and filters go through a budget besides. Everything else is transformers' own code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from types import BuiltinMethodType, FunctionType
from typing import Any, cast

from jinja2 import Template, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from loraft.errors import DataError
from loraft.tokenization.template_budget import BUDGET, Budget, Counted

MARKUP = re.compile(r"[<>\[\]/|｜]")
SEARCHING = {"startswith", "endswith", "find", "split", "partition"}
"""Methods by which templates search in a content."""
Plain = Sequence[Mapping[str, Any]]
"""Messages, or the JSON schemas of tools, as a template takes them."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ END if message['role'] == 'assistant' else '<|im_end|>' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] }}{{ END }}{{ '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


def choose_template(tokenizer: PreTrainedTokenizerBase, setting: str) -> tuple[str | None, tuple[str, ...]]:
    """The text of the template that `data.chat_template` means, and what there is to say about it.

    The text is None where the tokenizer can end no turn, so that conversations cannot be rendered.

    Raises:
        DataError: The file cannot be read.
    """
    if setting.endswith((".jinja", ".jinja2")):
        return _read(Path(setting)), ()
    own = tokenizer.chat_template
    if setting == "auto" and isinstance(own, dict):
        own = _in_one(own)
    if setting == "auto" and own:
        return str(own), ()
    name, text = ("alpaca", ALPACA) if setting == "alpaca" else ("chatml", CHATML)
    end = _end_mark(tokenizer)
    if end is None:
        return None, ()
    notes = []
    if setting == "auto":
        notes.append(f"the tokenizer has no chat template: {name} is used and saved with what is trained")
    if end != "<|im_end|>":
        notes.append(f"the chat template {name} ends each answer with {end}, the tokenizer's own end")
    return _begin(tokenizer) + text.replace("END", repr(end)), tuple(notes)


def _in_one(named: Mapping[str, str]) -> str:
    """Several templates of a tokenizer in one, chosen among as transformers does: `tool_use` where there are tools."""
    default = named.get("default") or next(iter(named.values()))
    if "tool_use" not in named:
        return default
    # Nothing printed stands between the tags and the templates, which would lose white space to them.
    with_tools, without = ("{{ '' }}" + each.removesuffix("\n") + "{{ '' }}" for each in (named["tool_use"], default))
    return f"{{% if tools %}}{with_tools}{{% else %}}{without}{{% endif %}}"


def _begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-text token, where the tokenizer itself puts one before every text."""
    bos = tokenizer.bos_token_id
    return "{{ bos_token }}" if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else ""


def _end_mark(tokenizer: PreTrainedTokenizerBase) -> str | None:
    known = tokenizer.get_vocab()
    if "<|im_end|>" in known and len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1:
        return "<|im_end|>"
    return str(tokenizer.eos_token) if tokenizer.eos_token is not None else None


def _read(path: Path) -> str:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot be read: {reason}", where=path, key="data.chat_template") from None
    if not text.strip():
        raise DataError("is empty, and no chat template", where=path, key="data.chat_template")
    return text


SMALL = 1000
"""Texts of so many characters are joined without counting: to keep many takes a list, whose parts are counted."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounding(self).visit(source), *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is not str or type(right) is not str or operator != "+":
            BUDGET.get().before_operator(operator, left, right)
        elif len(left) + len(right) > SMALL:
            BUDGET.get().make(len(left) + len(right))
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2's
        budget = BUDGET.get()
        budget.step()
        if isinstance(__obj, BuiltinMethodType) and isinstance(owner := __obj.__self__, str | bytes | int):
            if __obj.__name__ == "join" and args and not isinstance(owner, int):
                args = (budget.before_join(owner, args[0]), *args[1:])
            else:
                budget.before_method(owner, __obj.__name__, [*args, *kwargs.values()])
        elif isinstance(__obj, LoopContext) and args:  # a loop that calls itself
            args = (Counted(args[0]), *args[1:])
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | bytes | dict | Namespace):
            budget.make(budget.size_of(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        theirs = super().wrap_str_format(value)
        if theirs is None:
            return None

        @wraps(theirs)
        def bounded(*args: Any, **kwargs: Any) -> str:
            BUDGET.get().before_format(value.__self__, [*args, *kwargs.values()])
            return theirs(*args, **kwargs)

        return bounded

    counted = Counted  # the values of a loop

    @staticmethod
    def weighed(values: Any) -> Any:
        """A list, tuple or dict that the template writes, or a part of a value that it cuts out."""
        budget = BUDGET.get()
        budget.make(budget.size_of(values))
        return values

    @staticmethod
    def joined(*values: Any) -> str:
        """The values of `a ~ b`."""
        budget = BUDGET.get()
        texts = [budget.as_text(value) for value in values]
        budget.make(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a macro or a block prints; what the template prints is counted as it comes."""
        if isinstance(parts, list):
            BUDGET.get().make(sum(map(len, parts)))
        return "".join(parts)


def _printed(value: Any) -> Any:
    """A value that is printed, measured before it becomes text."""
    return value if value is None or isinstance(value, str | int | float) else BUDGET.get().as_text(value)


class _Bounding(NodeTransformer):
    """Lets loops, lists, cuts and concatenations go through the environment."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment

    def _through(self, method: str, node: nodes.Node, arguments: Sequence[nodes.Expr]) -> nodes.Expr:
        call = nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
        return cast("nodes.Expr", call.set_lineno(node.lineno).set_environment(self._environment))

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 finds it by this name
        self.generic_visit(node)
        node.iter = self._through("counted", node, [cast("nodes.Expr", node.iter)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._through("joined", node, node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._through("weighed", node, [node]) if isinstance(node.arg, nodes.Slice) else node

    def _written(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._through("weighed", node, [node])

    visit_List = visit_Tuple = visit_Dict = _written  # noqa: N815


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose input is measured first; `functools.wraps` keeps what jinja2 wants to be passed."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        value = budget.before_filter(name, args[first], [*args[first + 1 :], *kwargs.values()])
        result = function(*args[:first], value, *args[first + 1 :], **kwargs)
        if isinstance(result, str):
            budget.make(len(result))
        return result

    return bounded


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    """A template as transformers compiles it, with a budget."""
    theirs = chat_template_utils._compile_jinja_template("").environment
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
        BUDGET.set(budget := Budget(context.get_all()))
        for part in root(context):
            budget.make(len(part))
            yield part

    compiled.root_render_func = bounded
    return compiled


@lru_cache(maxsize=32)
def words_of(template: str) -> tuple[str, ...]:
    """The texts of three characters or more that a template searches for, and those in it that are markup.

    It searches for a text that is written left of `in`, or given to one of `SEARCHING`; what it asks of an item of a
    loop, as in `'image' in part`, is a key. Markup, such as `</think>`, counts wherever it stands.
    """
    tree = _compiled(template).environment.parse(template)
    others = {getattr(each.target, "name", "") for each in tree.find_all(nodes.Assign)}
    items = {getattr(each.target, "name", "") for each in tree.find_all(nodes.For)} - others
    compared = [each for each in tree.find_all(nodes.Compare) if each.ops[0].op in ("in", "notin")]
    searched = [each.expr for each in compared if getattr(each.ops[0].expr, "name", None) not in items]
    for call in tree.find_all(nodes.Call):
        searched += call.args if getattr(call.node, "attr", None) in SEARCHING else []
    texts = [each.value for each in searched if isinstance(each, nodes.Const) and isinstance(each.value, str)]
    printed = (str(each.value).strip() for each in tree.find_all(nodes.Const))
    texts += [text for text in printed if MARKUP.search(text)]
    return tuple(dict.fromkeys(text for text in texts if len(text) > 2))


# transformers' own function, with the templates that it compiles in the sandbox above.
_theirs: Any = chat_template_utils.render_jinja_template
_render: Any = FunctionType(
    _theirs.__code__, {**_theirs.__globals__, "_compile_jinja_template": _compiled}, "render", _theirs.__defaults__
)


def render_bounded(
    messages: Plain, template: str, *, tools: Plain, special_tokens: Mapping[str, Any], **options: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans of `{% generation %}` where `return_assistant_tokens_mask`.

    Text and options are those of transformers' `apply_chat_template`.

    Raises:
        TemplateBoundError: It takes more than a rendering may take.
        Exception: Whatever the template raises.
    """
    said = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,), spans = _render([said], tools=list(tools) or None, chat_template=template, **options, **special_tokens)
    return text, spans[0] if spans else []
