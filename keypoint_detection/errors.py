"""The one error that means: the input is wrong, not the program; and what torch says where memory does not suffice."""

from __future__ import annotations

import re

# On a GPU of any maker, and on a CPU.
_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")


class InputError(ValueError):
    """Bad input from the user.

    The text is one line that names the file, the entry and the value, and says what was expected. The command line
    prints it without a traceback and exits with code 2.

    Args:
        message: The text. Of an error in a worker of a data loader, whose message holds its traceback, the last line.
    """

    def __init__(self, message: str) -> None:
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):
            message = message.rsplit(f"{name}: ", 1)[-1].strip()
        super().__init__(message)


class ImageError(InputError):
    """An image that is loaded cannot be read, as one that has disappeared since its header was."""


def want_of_memory(error: BaseException) -> str | None:
    """Says that memory does not suffice and how much was asked for, where an error of torch means that; or None."""
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _OUT_OF_MEMORY):
        return None
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return "the memory does not suffice" + (f" for {asked[1]} more" if asked else "")
