"""`keypoint-detection check`: is a data set fit to train on, and what does it look like?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keypoint_detection import flags
from keypoint_detection.data.images import load_image
from keypoint_detection.data.native_format import DEFAULT_COORDINATES
from keypoint_detection.data.validation import CheckReport, check_dataset
from keypoint_detection.errors import InputError
from keypoint_detection.files import check_given, prepare_file, refuse_overwriting, writing
from keypoint_detection.markers import draw_keypoints
from keypoint_detection.picture_layout import add_legend, named_grid

PICTURE_WIDTH = 480
COLUMNS = 3


def check(
    json_dataset_path: str,
    image_dataset_path: str | None = None,
    keypoint_channels: str | list[str] | None = None,
    keypoint_coordinates: str = DEFAULT_COORDINATES,
    decode: bool = True,
    picture: str | None = None,
) -> CheckReport:
    """Check a data set, including every image, and print what is in it and what is wrong with it.

    Args:
        json_dataset_path: JSON file with the images and keypoints, in this library's or COCO's format.
        image_dataset_path: Folder that the image paths are relative to; by default the folder of the file.
        keypoint_channels: Channels to check, separated by spaces; a=b merges b into a, or renames b to a if there is no
            a. By default all.
        keypoint_coordinates: Coordinate convention of the native format: blender, normalized or pixel.
        decode: Decode every image, which finds damage beyond the header, and look for images under two names. Both take
            longer.
        picture: File for a picture of some images with their labels.

    Returns:
        What was found.

    Raises:
        InputError: If the labels themselves are wrong, or the picture cannot be written or is one of the images.
    """
    check_given(json_dataset_path, "--json_dataset_path")
    if picture is not None:
        _check_picture(picture)
    root = Path(image_dataset_path or Path(json_dataset_path).parent)
    report = check_dataset(
        json_dataset_path,
        root,
        keypoint_channels=keypoint_channels,
        keypoint_coordinates=keypoint_coordinates,
        decode=decode,
    )
    sys.stdout.write("\n".join(report.lines()) + "\n")
    sys.stdout.flush()  # before a picture that may fail
    if picture is not None and report.examples:
        refuse_overwriting(picture, map(report.annotations.path, range(len(report.annotations))))
        with writing(f"--picture {picture}"):
            Image.fromarray(draw_examples(report)).save(Path(picture))
        sys.stdout.write(f"\npicture: {picture}\n")
    return report


def _check_picture(picture: str) -> None:
    """Checks that a picture can be written, before any work is done, and makes its folder."""
    check_given(picture, "--picture")
    Image.init()
    kind = Image.registered_extensions().get(Path(picture).suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"--picture {picture}: expected the name of an image file, such as look.png or look.jpg")
    prepare_file(picture, "--picture")


def draw_examples(report: CheckReport) -> np.ndarray:
    """Draws the report's example images with their labels, `(H, W, 3)` uint8."""
    annotations = report.annotations
    pictures = []
    for index in report.examples:
        image = load_image(annotations.path(index))
        labels = annotations.keypoints(index, width=image.shape[1], height=image.shape[0])
        true = dict(zip(annotations.channel_names, labels, strict=True))
        pictures.append(draw_keypoints(image, true=true, width=PICTURE_WIDTH))
    grid = named_grid(pictures, [annotations.name(index) for index in report.examples], COLUMNS)
    return add_legend(grid, dict.fromkeys(annotations.channel_names, ""), "ring: labelled keypoint")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection check`.

    Args:
        arguments: The flags.

    Returns:
        0, or 2 if the data set is not fit to train on.
    """
    parser = flags.parser_for(check, "keypoint-detection check")
    config = parser.parse_args(arguments).as_dict()
    report = flags.call(check, config)
    return 2 if report.errors else 0
