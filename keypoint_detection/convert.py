"""`keypoint-detection convert`: writes a data set in another format, with other channels or coordinates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from keypoint_detection import flags
from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.formats import FORMATS, check_coordinates, read_annotations
from keypoint_detection.data.images import scan_sizes
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.data.validation import leave_out_outside
from keypoint_detection.errors import InputError
from keypoint_detection.files import check_given, prepare_file, refuse_overwriting
from keypoint_detection.wording import counted


def convert(
    json_dataset_path: str,
    output: str,
    to: str,
    image_dataset_path: str | None = None,
    keypoint_channels: str | list[str] | None = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    output_coordinates: Literal["blender", "normalized", "pixel"] = DEFAULT_COORDINATES,
) -> Annotations:
    """Write the labels of a data set in another format, with other channels or coordinates.

    Image paths are written as they are, relative to `image_dataset_path`. Keypoints outside their image are left out
    with a warning, as in training.

    Args:
        json_dataset_path: JSON file to read, in this library's or COCO's format.
        output: File to write; it is replaced if it exists.
        to: Format to write: native or coco. From a COCO file, neither keeps visibilities, areas, crowds, ids, or which
            keypoints belong to one object.
        image_dataset_path: Folder that the image paths are relative to; by default the folder of the file.
        keypoint_channels: Channels to keep, separated by spaces; a=b merges b into a, or renames b to a if there is no
            a. By default all.
        keypoint_coordinates: Coordinate convention of the native format to read: blender, normalized or pixel.
        output_coordinates: Coordinate convention of the native format to write; COCO always uses pixels.

    Returns:
        The annotations that were written.

    Raises:
        InputError: If something is wrong with the file or its images, for example if most keypoints are outside their
            image, or if the output cannot be written.
    """
    check_given(json_dataset_path, "--json_dataset_path")
    check_given(output, "--output")
    folder = Path(image_dataset_path or Path(json_dataset_path).parent)
    if to not in FORMATS:
        raise InputError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    check_coordinates("output_coordinates", output_coordinates)
    refuse_overwriting(output, [json_dataset_path])
    annotations = read_annotations(
        json_dataset_path, folder, keypoint_channels=keypoint_channels, keypoint_coordinates=keypoint_coordinates
    )
    refuse_overwriting(output, map(annotations.path, range(len(annotations))))
    prepare_file(output, "--output")
    sizes = scan_sizes(annotations, limit=None)
    annotations = leave_out_outside(annotations, sizes)
    FORMATS[to].write(annotations, Path(output), sizes, output_coordinates)
    return annotations


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection convert`.

    Args:
        arguments: The flags.

    Returns:
        The exit code.
    """
    parser = flags.parser_for(convert, "keypoint-detection convert")
    config = parser.parse_args(arguments).as_dict()
    written = flags.call(convert, config)
    names = written.channel_names
    text = f"{config['output']}: {counted(len(written), 'image')}, {counted(len(names), 'channel')}: {', '.join(names)}"
    sys.stdout.write(f"{text}; image paths are relative to {written.image_root}\n")
    return 0
