"""`python -m keypoint_detection.data.boxes`: renders cardboard boxes to train on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from keypoint_detection import flags
from keypoint_detection.data.boxes import generate

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders boxes as the command line says; its flags are the arguments of `generate`.

    Args:
        arguments: The flags; by default those of the process.

    Returns:
        The exit code.
    """
    parser = flags.parser_for(generate, "python -m keypoint_detection.data.boxes")
    config = parser.parse_args(arguments).as_dict()
    logger.info("wrote %s", flags.call(generate, config))
    return 0
