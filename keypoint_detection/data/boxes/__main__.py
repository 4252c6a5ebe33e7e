"""`python -m keypoint_detection.data.boxes --count 1000 --image_size 256 --output DIR --seed 0`."""

import logging
import sys

from jsonargparse import ArgumentParser

from keypoint_detection.data.boxes import generate
from keypoint_detection.errors import InputError


def main() -> None:
    """Reads the flags, which are the arguments of `generate`, and renders."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = ArgumentParser(prog="python -m keypoint_detection.data.boxes", description="Renders boxes to train on.")
    parser.add_function_arguments(generate)
    arguments = parser.parse_args()
    try:
        path = generate(**vars(arguments))
    except InputError as error:
        sys.exit(f"error: {error}")
    logging.getLogger(__name__).info("wrote %s", path)


if __name__ == "__main__":
    main()
