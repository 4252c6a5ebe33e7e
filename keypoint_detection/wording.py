"""Numbers with what they count, for messages and tables."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural if need be: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
