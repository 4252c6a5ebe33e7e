"""Small parts of messages and tables: numbers with what they count, what errors say, and hints at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural if need be: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest of the right names, or nothing if none is near."""
    close = nearest(name, names)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The nearest of the right names; none if none is near."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.7)
