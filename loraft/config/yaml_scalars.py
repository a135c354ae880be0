"""One plain word of YAML 1.2 as a value, and a value in words."""

from __future__ import annotations

import re
import sys

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

WORDS: dict[str, Value] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
DECIMAL = re.compile(r"[-+]?[0-9]+")
OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]{1,999}|0x[0-9a-fA-F]{1,999}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

LONGEST_SHOWN = 60


def scalar(text: str) -> Value:
    """The value of a plain (unquoted) word.

    `2e-4` is a number, `010` is 10, `no` and `1_000` are text. A whole number with more digits than Python
    prints is a float, and so infinite.

    Source: YAML 1.2.2, section 10.3.2, core schema.
    """
    if text in WORDS:
        return WORDS[text]
    if DECIMAL.fullmatch(text) and len(text) < sys.int_info.default_max_str_digits:
        return int(text)
    if OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if FLOAT.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def in_words(value: object) -> str:
    """What was found, as an error message says it: `the text '16'`, `the number 3`, `a list`."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {_shortened(_digits(value))}"
        case str():
            return f"the text {_shortened(value)!r}"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case _:
            return "a mapping" if value else "an empty mapping"


def _digits(number: float) -> str:
    if isinstance(number, int) and number.bit_length() > 4 * LONGEST_SHOWN:
        return f"{number:#x}"
    return str(number)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
