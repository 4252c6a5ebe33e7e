"""The program that runs on the robot: `python find_corners.py best.ckpt image.png` prints corners in image pixels.

The backbone of a checkpoint has to be registered before it is loaded: `import train` registers those of this project.
"""

from __future__ import annotations

import sys

import train  # noqa: F401  registers the backbones of this project

from keypoint_detection import KeypointPredictor
from keypoint_detection.errors import InputError


def main(checkpoint: str, image: str) -> int:
    """Prints channel, position and score of every keypoint in an image; returns the exit code."""
    try:
        found = KeypointPredictor(checkpoint)(image)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for channel, keypoints in found.items():
        for (x, y), score in zip(keypoints.xy.tolist(), keypoints.scores.tolist(), strict=True):
            print(f"{channel:24} {x:8.2f} {y:8.2f} {score:6.3f}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print("usage: find_corners.py CHECKPOINT IMAGE", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
