"""Draws the pictures of the documentation: `python docs/pictures.py [best.ckpt]`, of a detector of rendered boxes."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from keypoint_detection.data.boxes import sample
from keypoint_detection.errors import InputError
from keypoint_detection.markers import draw_keypoints
from keypoint_detection.picture_layout import add_legend, image_grid
from keypoint_detection.predict import KeypointPredictor

CHOSEN = (302, 304, 308, 310, 311, 313, 319, 323)
CHANNELS = ("corner_keypoints", "flap_corner_keypoints")
TRAINED_SIZE = (160, 160)  # of the images that the detector was trained on, which have another seed than these
UNSEEN = 1


def labelled() -> list[np.ndarray]:
    """Rendered boxes with their labels."""
    pictures = []
    for index in CHOSEN:
        image, scene = sample(index, (300, 300), supersampling=3)
        keypoints = {name: points[:, :2] for name, points in scene.visible_keypoints().items()}
        pictures.append(draw_keypoints(image, true=keypoints))
    return pictures


def found(predictor: KeypointPredictor) -> list[np.ndarray]:
    """Boxes that the detector has not seen, with what it finds and what is there."""
    pictures = []
    for index in range(8):
        image, scene = sample(index, TRAINED_SIZE, seed=UNSEEN)
        prediction = predictor(image)
        true = {name: points[:, :2] for name, points in scene.visible_keypoints().items()}
        xy = {name: keypoints.xy for name, keypoints in prediction.items()}
        scores = {name: keypoints.scores for name, keypoints in prediction.items()}
        pictures.append(draw_keypoints(image, predicted=xy, true=true, scores=scores, width=300))
    return pictures


def write(pictures: list[np.ndarray], marks: str, name: str) -> None:
    """Lays pictures out in two rows above a legend."""
    grid = image_grid([pictures[:4], pictures[4:]])
    picture = add_legend(grid, dict.fromkeys(CHANNELS, ""), marks)
    Image.fromarray(picture).save(Path(__file__).with_name(name), quality=88)


def main() -> None:
    """Writes `boxes.jpg`, and `found.jpg` where a checkpoint is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="best.ckpt")
    checkpoint = parser.parse_args().checkpoint
    try:
        predictor = None if checkpoint is None else KeypointPredictor(checkpoint)
    except InputError as error:
        parser.error(str(error))
    write(labelled(), "ring: true keypoint", "boxes.jpg")
    if predictor:
        write(found(predictor), "cross: found (the larger the higher its score), ring: true keypoint", "found.jpg")


if __name__ == "__main__":
    main()
