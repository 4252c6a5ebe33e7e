"""How exact labels are if two views show the same keypoints, so that one coordinate is known twice.

`python benchmarks/label_noise.py DATA/train.json DATA/test.json best.ckpt --views "paw_side=paw_below nose_side=..."`

A camera that sees an animal directly and in a mirror below sees each part twice, at about the same x. A linear fit to
the labels of the first file predicts a part's first x from its other three coordinates. The fit is then applied to the
labels of the second file, and to what the detector found there; printed are the errors that remain. Those of the labels
are an upper bound of their noise, since the views may show different sides of a part. If those of the detections are
smaller, that does not show that they are nearer to the truth: a detector whose errors in both views are correlated
agrees with itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from accuracy import single_keypoints, top_detections
from harness import exit_code

from keypoint_detection.errors import InputError

Keypoints = dict[tuple[Path, str], np.ndarray]  # xy in pixels by image file and channel

# Pixels: a detection further from its label is of another part, and says nothing about how exact either of them is.
WITHIN = 12.0


def pair_up(keypoints: Keypoints, views: tuple[str, str]) -> np.ndarray:
    """Both views of a part, in the images that have both: `(n, 4)` x and y of the first, x and y of the second."""
    first, second = views
    images = sorted({image for image, _ in keypoints})
    both = [(keypoints.get((image, first)), keypoints.get((image, second))) for image in images]
    return np.array([np.append(a, b) for a, b in both if a is not None and b is not None]).reshape(-1, 4)


def terms(pairs: np.ndarray) -> np.ndarray:
    """The terms of the linear fit of the first x, `(n, 4)`."""
    return np.column_stack([np.ones(len(pairs)), pairs[:, 1:]])


def main() -> None:
    """Print the errors that the fit leaves for labels and detections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, metavar="TRAIN.json")
    parser.add_argument("test", type=Path, metavar="TEST.json")
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--views", required=True, help="pairs of channels, first=second")
    arguments = parser.parse_args()
    views = [tuple(pair.split("=")) for pair in arguments.views.split()]
    if not views:
        raise InputError("--views: expected first=second, found nothing")
    for path in (arguments.train, arguments.test, *arguments.checkpoint):
        if not path.is_file():
            raise InputError(f"{path}: expected a file, found none")
    labels = {(label.path, label.channel): label.xy for label in single_keypoints(arguments.train)}
    names = {name for _, name in labels}
    if not names:
        raise InputError(f"{arguments.train}: expected channels with one keypoint in an image, found none")
    for view in views:
        if len(view) != 2 or not set(view) <= names:
            raise InputError(f"--views {'='.join(view)}: expected first=second of {', '.join(sorted(names))}")
    pairs = [pair_up(labels, view) for view in views]
    coefficients = [np.linalg.lstsq(terms(fitted), fitted[:, 0])[0] for fitted in pairs]
    for checkpoint in arguments.checkpoint:
        truths, detections = {}, {}
        for label, found in top_detections(checkpoint, arguments.test):
            if found is not None and np.hypot(*(found - label.xy)) <= WITHIN:
                truths[label.path, label.channel], detections[label.path, label.channel] = label.xy, found
        for name, keypoints in (("labels", truths), ("detections", detections)):
            pairs = [pair_up(keypoints, view) for view in views]
            left = [np.abs(p[:, 0] - terms(p) @ c) for p, c in zip(pairs, coefficients, strict=True)]
            parts = ", ".join(f"{view[0]} {np.median(x):.2f}" for view, x in zip(views, left, strict=True))
            total = np.concatenate(left)
            print(f"{checkpoint}: {name} leave {np.median(total):.2f} px in the median of {len(total)} pairs ({parts})")


if __name__ == "__main__":
    sys.exit(exit_code(main))
