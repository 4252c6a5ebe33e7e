"""`keypoint-detection convert`: a data set in another format, with other channels or coordinates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from keypoint_detection import flags
from keypoint_detection.data import formats
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.wording import counted


def convert(
    json_dataset_path: str,
    output: str,
    to: str,
    image_dataset_path: str | None = None,
    keypoint_channels: str | None = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    output_coordinates: Literal["blender", "normalized", "pixel"] = DEFAULT_COORDINATES,
) -> str:
    """Write the labels of a data set in another format, with other channels or coordinates.

    Image paths are written as they are, relative to `image_dataset_path`.

    Args:
        json_dataset_path: JSON file to read, in this library's or in COCO's format.
        output: File to write, replaced if it exists.
        to: Format to write: native or coco.
        image_dataset_path: Folder that the image paths are relative to; the folder of the file when left out.
        keypoint_channels: Channels to keep, with spaces between them; a=b merges b into a. All when left out.
        keypoint_coordinates: Convention of the native format that is read: blender, normalized or pixel.
        output_coordinates: Convention of the native format to write; COCO is always in pixels.

    Returns:
        One line about what was written.

    Raises:
        InputError: If something is wrong with the file or its images, or the output cannot be written.
    """
    folder = Path(image_dataset_path or Path(json_dataset_path).parent)
    written = formats.convert(
        json_dataset_path,
        folder,
        output,
        to=to,
        keypoint_channels=keypoint_channels,
        keypoint_coordinates=keypoint_coordinates,
        output_coordinates=output_coordinates,
    )
    names = written.channel_names
    text = f"{output}: {counted(len(written), 'image')}, {counted(len(names), 'channel')}: {', '.join(names)}"
    return f"{text}; image paths are relative to {folder}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection convert`.

    Args:
        arguments: The flags.

    Returns:
        The exit code.
    """
    parser = flags.parser_for(convert, "keypoint-detection convert")
    line = flags.call(convert, parser.parse_args(list(arguments) if arguments is not None else None).as_dict())
    sys.stdout.write(line + "\n")
    return 0
