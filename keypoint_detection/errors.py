"""The error for wrong input, as opposed to a bug in the program, and torch's out-of-memory errors in plain words."""

from __future__ import annotations

import re

# What torch says on a GPU of any vendor, and on a CPU.
_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "Storage size calculation overflowed")


class InputError(ValueError):
    """Bad input from the user.

    The text is one line that names the file, the entry and the value, and says what was expected. The command line
    prints it without a traceback and exits with code 2.

    Args:
        message: The text. For an error in a data loader's worker, whose message holds a traceback, only the last line
            is kept.
    """

    def __init__(self, message: str) -> None:
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):
            message = message.rsplit(f"{name}: ", 1)[-1].strip()
        super().__init__(message)


class ImageError(InputError):
    """An image cannot be read when it is loaded, for example because it was deleted after its header was read."""


def want_of_memory(error: BaseException) -> str | None:
    """If torch raised this error for lack of memory, says so and how much was asked for; otherwise None."""
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _OUT_OF_MEMORY):
        return None
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return "not enough memory" + (f" for {asked[1]} more" if asked else "")
