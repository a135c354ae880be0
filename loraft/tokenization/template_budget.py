"""What one rendering of a chat template may cost: processor time, and characters that it makes.

What multiplies text is measured before it is made: products, widths, formats, replacements, joined and nested lists.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

MOST_SECONDS = 1.0
"""Processor time of a rendering, which usually takes less than a thousandth of it."""
MOST_CHARACTERS = 30_000_000
PER_CHARACTER = 20
SECONDS_PER_CHARACTER = 1e-7
"""A rendering may make and take so much, and so much more for each character that it is given."""
MOST_NUMBER = 100_000
"""The largest width, and the most digits of a number."""
LOOKS = 64
"""Passes of loops, calls and filters between two looks at the clock."""
SHORT = 100_000
"""The most characters for a filter of which it is not known that its time grows no faster than its input."""
WIDE = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes", "tojson", "zfill"}
"""Methods and filters that take a width, a count or a number of digits."""
LINEAR = WIDE | {
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float", "format", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe",
    "select", "selectattr", "sort", "string", "sum", "trim", "truncate", "unique", "upper",
}  # fmt: skip
WHOLE = {"batch", "dictsort", "list", "slice", "sort", "string", "sum", "tojson", "unique"}
"""Filters that go through all of their input."""
WIDENING = {"expandtabs", "indent", "translate"}
"""Methods and filters that may make a character as wide as they are told."""
PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*([0-9]*)\.?([0-9]*)")
BRACES = re.compile(r"\{[^{}]*:[^{}0-9]*([0-9]*)[^{}0-9]*([0-9]*)")
GIVEN_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
"""A format that takes a width from its values."""


class TemplateBoundError(TemplateRuntimeError):
    """A template takes more than a rendering may take."""


class Budget:
    """What is left to one rendering; what it was given is measured only where that decides.

    What makes more than that raises a TemplateBoundError.
    """

    def __init__(self, given: object) -> None:
        self._until = time.thread_time() + MOST_SECONDS
        self._left = MOST_CHARACTERS
        self._given: object = given
        self._passes = 0

    def _extended(self) -> Budget:
        given, self._given = self._given, None
        size = self.weight_of(given)
        self._left += PER_CHARACTER * size
        self._until += SECONDS_PER_CHARACTER * size
        return self

    def look(self) -> None:
        """Look at the clock."""
        now = time.thread_time()
        if now > self._until and now > self._extended()._until:
            raise TemplateBoundError(f"it takes more than {MOST_SECONDS:.0f} s of processor time")

    def step(self) -> None:
        """One pass of a loop, one call, one filter: what these make is bounded, and to read the clock takes longer."""
        self._passes += 1
        if self._passes % LOOKS == 0:
            self.look()

    def make(self, characters: int) -> None:
        """So many characters, or parts of lists, are about to be made."""
        self._left -= characters
        if self._left < 0 and self._extended()._left < 0:
            raise TemplateBoundError(f"it makes more than {MOST_CHARACTERS:,} characters, or parts of lists")

    def as_text(self, value: object) -> str:
        """A value as text, measured before it is one."""
        if isinstance(value, str):
            return value
        self.make(self.weight_of(value))
        return str(value)

    def weight_of(self, value: object, *, characters: bool = True) -> int:
        """About the characters of a value as text: of what lies in it several times, as often as it lies there."""
        total, parts, stack = 0, 0, [value]
        while stack:
            top = stack.pop()
            parts += 1
            if isinstance(top, str | bytes):
                total += len(top) if characters else 0
            elif isinstance(top, int):
                total += top.bit_length() // 3
            elif isinstance(top, range):
                total += len(top)
            elif isinstance(top, Mapping):
                stack += [*top.keys(), *top.values()]
            elif isinstance(top, list | tuple | set | frozenset):
                stack += top
            elif isinstance(top, Namespace):
                stack.append(object.__getattribute__(top, "_Namespace__attrs"))
            if parts % 1024 == 0:
                self.look()
        return total + parts

    def size_of(self, value: object) -> int:
        """What is made for a value: of a text its characters, of others their parts, which hold their texts."""
        return len(value) if isinstance(value, str | bytes) else self.weight_of(value, characters=False)

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Measure what an operator makes."""
        if isinstance(left, int) and isinstance(right, int):
            bits = {"**": left.bit_length() * abs(right), "*": left.bit_length() + right.bit_length()}
            if bits.get(operator, 0) > MOST_NUMBER:
                raise TemplateBoundError(f"it computes a number of more than {MOST_NUMBER:,} binary digits")
        elif operator == "*":
            value, count = (right, left) if isinstance(left, int) else (left, right)
            self.make(self.size_of(value) * max(count, 0) if isinstance(count, int) else 0)
        elif operator == "+":
            self.make(self.size_of((left, right)))
        elif operator == "%" and isinstance(left, str | bytes):
            self.before_format(left, [right])

    def before_method(self, owner: str | bytes | int, name: str, values: Sequence[Any]) -> None:
        """Measure what a method of a text or a number makes, `join` aside."""
        if name in WIDE:
            _refuse_wide(values)
        if isinstance(owner, int):
            return
        made = len(owner)
        if name in WIDENING:
            made *= max([8, *(each if isinstance(each, int) else len(each) for each in _leaves(values))])
        elif name == "replace" and len(values) >= 2 and all(isinstance(each, type(owner)) for each in values[:2]):
            made += owner.count(values[0]) * len(values[1])
        self.make(made)

    def before_filter(self, name: str, value: Any, values: Sequence[Any]) -> Any:
        """Measure what a filter makes of a value, and give the value."""
        self.step()
        if name in WIDE:
            _refuse_wide(values)
        if name == "join":
            return self.before_join(values[0] if values and isinstance(values[0], str) else "", value)
        if name == "format":
            self.before_format(self.as_text(value), values)
        elif name == "indent":
            self.before_method(self.as_text(value), name, values)
        elif name == "replace":
            self.before_method(self.as_text(value), name, [self.as_text(each) for each in values])
        elif name in WHOLE:
            if name == "tojson" and self.weight_of(list(values)) > 200:
                raise TemplateBoundError("it writes JSON with long texts between its parts")
            widest = max([1, *(number for number in values if isinstance(number, int))])
            self.make(self.weight_of(value) * (widest if name == "tojson" else 1) + (widest if name != "sum" else 0))
        elif name not in LINEAR and self.weight_of([value, *values]) > SHORT:
            raise TemplateBoundError(f"it gives the filter {name} more than {SHORT:,} characters")
        return value

    def before_format(self, form: str | bytes, values: Sequence[Any]) -> None:
        """A format gives each field as often as it names it, in a width that it says or is given."""
        text = form if isinstance(form, str) else form.decode("latin-1")
        widths = [width for found in (PERCENT, BRACES) for pair in found.findall(text) for width in pair if width]
        if any(len(width) > 6 or int(width) > MOST_NUMBER for width in widths):
            raise TemplateBoundError(f"it formats in a width of more than {MOST_NUMBER:,}")
        if GIVEN_WIDTH.search(text):
            _refuse_wide(values)
        fields = text.count("%") + text.count("{")
        self.make(len(text) + sum(map(int, widths)) + fields * self.weight_of(list(values)))

    def before_join(self, between: str | bytes, values: Any) -> list[Any]:
        """What is joined, as a list, measured before it is joined."""
        listed = list(Counted(values))
        self.make(self.weight_of(listed) + len(listed) * len(between))
        return listed


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


class Counted:
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


def _refuse_wide(values: Iterable[Any]) -> None:
    if any(isinstance(each, int) and abs(each) > MOST_NUMBER for each in _leaves(values)):
        raise TemplateBoundError(f"it asks for a width or a count of more than {MOST_NUMBER:,}")


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The numbers and texts in values, however deep."""
    for value in values:
        if isinstance(value, list | tuple | dict):
            yield from _leaves(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, str | bytes | int):
            yield value
