"""Draws the pictures of the documentation: `python docs/pictures.py`."""

from pathlib import Path

from PIL import Image

from keypoint_detection.data.boxes import sample
from keypoint_detection.visualization import add_legend, draw_keypoints, image_grid

CHOSEN = (302, 304, 308, 310, 311, 313, 319, 323)


def main() -> None:
    """Writes `boxes.jpg`: rendered boxes with their labels."""
    pictures = []
    for index in CHOSEN:
        image, scene = sample(index, (300, 300), supersampling=3)
        keypoints = {name: points[:, :2] for name, points in scene.visible_keypoints().items()}
        pictures.append(draw_keypoints(image, true=keypoints))
    grid = image_grid([pictures[:4], pictures[4:]])
    names = dict.fromkeys(("corner_keypoints", "flap_corner_keypoints"), "")
    picture = add_legend(grid, names, "ring: true keypoint")
    Image.fromarray(picture).save(Path(__file__).with_name("boxes.jpg"), quality=88)


if __name__ == "__main__":
    main()
