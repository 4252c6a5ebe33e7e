"""Small parts of messages and tables: counts with their nouns, first lines of errors, hints, and the command line."""

from __future__ import annotations

import difflib
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

# Maximum number of equally close names that a hint lists.
_MOST_EQUAL = 3


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural if need be: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cells(text: str) -> int:
    """Width of a text in terminal cells: a Chinese character takes two, a combining mark none."""
    shown = [letter for letter in text if unicodedata.category(letter) not in ("Mn", "Me", "Cf")]
    return len(shown) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in shown)


def padded(text: str, width: int) -> str:
    """The text, padded with spaces to a width in terminal cells."""
    return text + " " * (width - cells(text))


def command_line() -> str:
    """The command of this process, quoted for a shell; a Python file is preceded by the interpreter."""
    runs_it = [Path(sys.executable).name] if sys.argv[0].endswith(".py") else []
    return shlex.join([*runs_it, *sys.argv])


def did_you_mean(unknown: str | Sequence[str], names: Iterable[str], shown: str = "{}", most: int = 1) -> str:
    """A hint at what was meant, such as ` (did you mean max_steps?)`, or an empty text if no name is close.

    Args:
        unknown: An unknown name, or several.
        names: The known names.
        shown: Format of a suggestion: `"--{}"` for flags.
        most: Maximum number of suggestions for each unknown name; of equally close ones, up to three.
    """
    words, names = [unknown] if isinstance(unknown, str) else unknown, list(names)
    near = []
    for word in words:
        likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in names}
        least = max([0.7, *sorted(likeness.values(), reverse=True)[most - 1 : most]])
        close = [name for name in names if likeness[name] >= least]
        near += sorted(close, key=lambda name: (-likeness[name], name))[: max(most, _MOST_EQUAL)]
    return f" (did you mean {', '.join(map(shown.format, near))}?)" if near else ""
