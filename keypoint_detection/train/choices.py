"""What takes the place of `auto`, and why."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


class Choices:
    """Puts a value in the place of each `auto`, logs it and keeps why.

    Attributes:
        reasons: Why a value was chosen, by name; nothing of values that were given.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def choose(self, name: str, given: Any, choice: Any, reason: str, is_news: bool = True) -> Any:
        """Returns what was given, or the choice where that is `auto`.

        Args:
            name: Name of the flag.
            given: Its value.
            choice: What `auto` means.
            reason: Why, as text.
            is_news: Whether the choice is logged: not where it has no effect.
        """
        if given != "auto":
            return given
        self.reasons[name] = reason
        if is_news:
            logger.info("--%s %s (auto: %s)", name, "none" if choice is None else choice, reason)
        return choice
