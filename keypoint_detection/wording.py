"""Small parts of messages and tables: numbers with what they count, what errors say, hints, and the command."""

from __future__ import annotations

import difflib
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural if need be: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cells(text: str) -> int:
    """How many cells of a terminal a text takes: two for a Chinese letter, none for a mark over the one before it."""
    shown = [letter for letter in text if unicodedata.category(letter) not in ("Mn", "Me", "Cf")]
    return len(shown) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in shown)


def padded(text: str, width: int) -> str:
    """The text with spaces behind it, up to a width in cells of a terminal."""
    return text + " " * (width - cells(text))


def command_line() -> str:
    """The command of this process, as a shell takes it again: a file of Python's begins with what runs it."""
    runs_it = [Path(sys.executable).name] if sys.argv[0].endswith(".py") else []
    return shlex.join([*runs_it, *sys.argv])


def did_you_mean(unknown: str | Sequence[str], names: Iterable[str], shown: str = "{}", most: int = 1) -> str:
    """A hint at what was meant, such as ` (did you mean max_epochs?)`, or nothing if no name is near.

    Args:
        unknown: A name that is not among the right ones, or several.
        names: The right ones.
        shown: How they are shown: `"--{}"` as flags.
        most: How many of them to name at most for each one that is unknown.
    """
    words, names = [unknown] if isinstance(unknown, str) else unknown, list(names)
    near = [name for word in words for name in difflib.get_close_matches(word, names, n=most, cutoff=0.7)]
    return f" (did you mean {', '.join(map(shown.format, near))}?)" if near else ""
