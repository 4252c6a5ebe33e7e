"""What replaces `auto`, and why."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


class Choices:
    """Replaces each `auto` by a value, logs it and keeps the reason.

    Attributes:
        reasons: Why a value was chosen, by flag name; values that were given have no entry.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def choose(self, name: str, given: Any, choice: Any, reason: str, is_news: bool = True) -> Any:
        """Returns the given value, or the choice if that value is `auto`.

        Args:
            name: Name of the flag.
            given: Its value.
            choice: What `auto` means.
            reason: Why, as text.
            is_news: Whether to log the choice; False if it has no effect.
        """
        if given != "auto":
            return given
        self.reasons[name] = reason
        if is_news:
            logger.info("--%s %s (auto: %s)", name, "none" if choice is None else choice, reason)
        return choice
