"""Writes annotations in each of the formats that can be read.

N images, C channels, K keypoints.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.coco_format import channels_of
from keypoint_detection.data.native_format import PATH_KEY, check_writable
from keypoint_detection.files import replaced, writing

logger = logging.getLogger(__name__)


def write_native(annotations: Annotations, path: Path, sizes: np.ndarray, coordinates: str) -> None:
    """Writes the project's own format, with depths if there are any.

    Args:
        annotations: the data.
        path: the file, replaced if it exists.
        sizes: `(N, 2)` width and height of each image in pixels.
        coordinates: "blender", "normalized" or "pixel".

    Raises:
        InputError: if the file cannot be written, or a channel has the name of a reserved key.
    """
    check_writable(annotations.channel_names)
    with writing(str(path)), replaced(path, "w") as file:
        said = "" if coordinates == "blender" else f'"coordinates": "{coordinates}", '
        file.write(f'{{{said}"dataset": [')
        for index, (width, height) in enumerate(sizes.tolist()):
            entry: dict[str, Any] = {PATH_KEY: annotations.name(index)}
            keypoints = annotations.keypoints(index, width, height)
            depths = annotations.depths(index)
            for name, xy, depth in zip(annotations.channel_names, keypoints, depths, strict=True):
                entry[name] = [
                    [*_short(uv), *([] if np.isnan(d) else _short([d]))]
                    for uv, d in zip(from_pixels(xy, width, height, coordinates), depth, strict=True)
                ]
            file.write(",\n" if index else "\n")
            json.dump(entry, file)
        file.write("\n]}\n")


def write_coco(annotations: Annotations, path: Path, sizes: np.ndarray, coordinates: str) -> None:
    """Writes COCO keypoints, with one object per image that has keypoints; depths are lost.

    A channel with several keypoints becomes `channel_0, channel_1, ...`, which the reader joins again.

    Args:
        annotations: the data.
        path: the file, replaced if it exists.
        sizes: `(N, 2)` width and height of each image in pixels.
        coordinates: not used, COCO is always in pixels.

    Raises:
        InputError: if the file cannot be written.
    """
    if annotations.depth is not None:
        logger.warning("%s: COCO has no field for depths, so they are left out", path)
    slots = np.maximum(annotations.counts().max(0), 1)
    names: list[str] = []
    for name, count in zip(annotations.channel_names, slots, strict=True):
        # A name that already ends in a number gets another one, so that it is not read as one of several.
        numbered = count > 1 or name.rpartition("_")[2].isdecimal()
        names.extend(f"{name}_{number}" for number in range(count)) if numbered else names.append(name)
    for name, read in zip(np.repeat(annotations.channel_names, slots).tolist(), channels_of(names), strict=True):
        if name != read:  # e.g. a channel `a_0` next to a channel `a` that becomes `a_0, a_1`
            logger.warning('%s: the channel "%s" will be read as "%s"; rename it to avoid that', path, name, read)
    category = {"id": 1, "name": "object", "supercategory": "object", "keypoints": names, "skeleton": []}
    with writing(str(path)), replaced(path, "w") as file:
        file.write(f'{{"categories": [{json.dumps(category)}],\n"images": [')
        for index, (width, height) in enumerate(sizes.tolist()):
            file.write(",\n" if index else "\n")
            json.dump({"id": index + 1, "file_name": annotations.name(index), "width": width, "height": height}, file)
        file.write('\n],\n"annotations": [')
        for number, index in enumerate(np.nonzero(annotations.counts().any(1))[0].tolist(), 1):
            file.write(",\n" if number > 1 else "\n")
            width, height = sizes[index].tolist()
            json.dump(_coco_object(number, index, annotations.keypoints(index, width, height), slots), file)
        file.write("\n]}\n")


def _coco_object(number: int, index: int, keypoints: list[np.ndarray], slots: np.ndarray) -> dict[str, Any]:
    triples: list[float] = []
    for xy, count in zip(keypoints, slots, strict=True):
        for point in xy:
            triples += [*_short(point), 2]
        triples += [0, 0, 0] * (int(count) - len(xy))
    points = np.concatenate(keypoints).astype(np.float64)
    low, high = points.min(0), points.max(0)
    return {
        "id": number,
        "image_id": index + 1,
        "category_id": 1,
        "keypoints": triples,
        "num_keypoints": len(points),
        "bbox": np.concatenate([low, high - low]).round(3).tolist(),
        "area": round(float((high - low).prod()), 3),
        "iscrowd": 0,
    }


def from_pixels(xy: np.ndarray, width: int, height: int, coordinates: str) -> np.ndarray:
    """Converts continuous pixels to the coordinates of a file.

    Args:
        xy: `(K, 2)`.
        width: width of the image in pixels.
        height: height of the image in pixels.
        coordinates: "blender", "normalized" or "pixel".

    Returns:
        `(K, 2)` float64.
    """
    uv = xy.astype(np.float64)
    if coordinates != "pixel":
        uv /= (width, height)
    if coordinates == "blender":
        uv[:, 1] = 1 - uv[:, 1]
    return uv


def _short(values: Any) -> list[float]:
    """The shortest decimals that are read back as the same float32."""
    return [float(str(np.float32(value))) for value in values]
