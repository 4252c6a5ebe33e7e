"""`python -m keypoint_detection.data.boxes`: renders cardboard boxes to train on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from keypoint_detection import flags
from keypoint_detection.data.boxes import generate

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders with the flags of a command line, which are the arguments of `generate`.

    Args:
        arguments: The flags; those of the process where none are given.

    Returns:
        The exit code.
    """
    parser = flags.parser_for(generate, "python -m keypoint_detection.data.boxes")
    config = parser.parse_args(arguments).as_dict()
    logger.info("wrote %s", flags.call(generate, config))
    return 0
