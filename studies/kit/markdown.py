"""Small words and tables for the pages that studies write; the filters of their templates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from studies.kit.seeds import Interval


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(items: Iterable[object]) -> str:
    """One, two and three."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def verb(interval: Interval, more: str, less: str, neither: str, zero: float = 0.0) -> str:
    """What an interval says: ``more`` or ``less`` only where it leaves ``zero`` out."""
    if interval.low > zero:
        return more
    return less if interval.high < zero else neither


def scientific(interval: Interval) -> str:
    """(2.17 ± 0.65)·10⁻³; 2.17·10⁻³ without an interval."""
    if not math.isfinite(interval.mean) or interval.mean == 0:
        return f"{interval.mean:.3g}"
    power = math.floor(math.log10(abs(interval.mean)))
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mean = f"{interval.mean / 10**power:.2f}"
    if not math.isfinite(interval.half):
        return f"{mean}·10{raised}"
    return f"({mean} ± {interval.half / 10**power:.2f})·10{raised}"


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[0].upper() + text[1:]


def number(value: object, form: str = ".3g") -> str:
    """A number in one of Python's formats; an interval has its own, mean ± half-width."""
    return str(value) if isinstance(value, Interval) else format(value, form)


def percent(share: float, form: str = ".0f") -> str:
    """A share in percent: 0.25 is 25 %."""
    return f"{100 * share:{form}} %"
