"""What runs on the robot: `python find_corners.py best.ckpt image.png` prints corners in pixels of the image.

The backbone of a checkpoint has to be known when it is loaded: `import train` does that for those of this project.
"""

from __future__ import annotations

import sys

import train  # noqa: F401  registers the backbones of this project

from keypoint_detection.errors import InputError
from keypoint_detection.predict import KeypointPredictor


def main(checkpoint: str, image: str) -> None:
    """Prints channel, position and score of every keypoint in an image."""
    predictor = KeypointPredictor(checkpoint)
    for channel, keypoints in predictor(image).items():
        for (x, y), score in zip(keypoints.xy.tolist(), keypoints.scores.tolist(), strict=True):
            print(f"{channel:24} {x:8.2f} {y:8.2f} {score:6.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: find_corners.py CHECKPOINT IMAGE")
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
