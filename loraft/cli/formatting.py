"""Numbers as a person reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def as_bytes(number: float) -> str:
    """Decimal units with two or three figures: `812 MB`, `2.1 GB`."""
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    figures = f"{size:.1f}" if unit != "B" and abs(size) < 9.95 else f"{size:.0f}"
    return f"{figures} {unit}"


def as_count(number: float) -> str:
    """Whole numbers in groups of three: `4,884,480`; others as they are: `2.5`."""
    return f"{int(number):,}" if math.isfinite(number) and number == int(number) else f"{number:,g}"


def as_duration(seconds: float) -> str:
    """The two largest units: `42s`, `4m12s`, `3h05m`, `2d04h`."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def as_measure(number: float) -> str:
    """A loss, a norm or a perplexity: four decimals while small, five figures when large."""
    if not math.isfinite(number):
        return str(number)
    if number != 0 and abs(number) < 0.001:
        return f"{number:.1e}"
    return f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"


def as_rate(learning_rate: float) -> str:
    """A learning rate: `2.00e-4`, without the zeros of the exponent."""
    if learning_rate == 0:
        return "0"
    mantissa, exponent = f"{learning_rate:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def as_share(part: float, whole: float) -> str:
    """A part in per cent of the whole, with enough decimals to tell it from nothing: `3.50 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.3f} %" if 0 < percent < 0.1 else f"{percent:.2f} %" if percent < 10 else f"{percent:.1f} %"


def as_span(indices: Sequence[int]) -> str:
    """Whole numbers in ascending order, unbroken runs by their ends: `0–29`, `0, 3–5`."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ends)
