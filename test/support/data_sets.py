"""Small data sets on disk, whose images and keypoints a test knows."""

import json

import numpy as np
from PIL import Image


def write_data_set(folder, sizes, keypoints, name="dataset.json", coordinates="pixel"):
    """Writes one PNG of noise per size (width, height), others in a folder of another name, and the JSON file.

    `keypoints[i]` is a dictionary from channel to a list of xy in pixels.
    """
    entries = []
    for index, ((width, height), channels) in enumerate(zip(sizes, keypoints, strict=True)):
        pixels = np.random.default_rng([index, *folder.name.encode()]).integers(
            0, 256, (height, width, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        entries.append({"image_path": f"{index:03d}.png", **channels})
    path = folder / name
    path.write_text(json.dumps({"coordinates": coordinates, "dataset": entries}))
    return path


def pixels_of(folder, index):
    """The noise of image `index`, `(H, W, 3)` uint8."""
    return np.array(Image.open(folder / f"{index:03d}.png"))
