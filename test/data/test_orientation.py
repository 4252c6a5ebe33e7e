"""Data sets whose orientation is known, because the tests turn them."""

import json

import numpy as np
import pytest
from data_sets import write_data_set
from PIL import Image

from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.orientation import measure_orientation

ARROW = {"head": (0, -60), "left": (-30, 0), "right": (30, 0), "tail": (0, 60)}


def data_set(folder, angles, shape=ARROW):
    """Labels of one shape, turned by an angle in each image, in degrees."""
    return save_labels(folder, [turned(angle, shape) for angle in angles])


def turned(degrees, shape=ARROW):
    """Positions in an image of a shape that is turned about its middle."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return {name: turn @ xy + 100 for name, xy in shape.items()}


def save_labels(folder, images):
    """Labels of some images of 200x200, each a position by the name of its channel."""
    entries = []
    for index, positions in enumerate(images):
        Image.new("L", (200, 200)).save(folder / f"{index}.png")
        points = {name: [positions[name].tolist()] if name in positions else [] for name in images[0]}
        entries.append({"image_path": f"{index}.png", **points})
    (folder / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return read_annotations(folder / "labels.json", folder), np.full((len(entries), 2), 200)


def test_things_that_stand_upright_agree(tmp_path):
    found = measure_orientation(*data_set(tmp_path, [-8, -3, 0, 2, 5, 9]), mirrored_channels=[0, 2, 1, 3])
    assert found.direction > 0.97
    assert found.mirrored > 0.97


def test_a_mirrored_copy_of_things_that_look_to_one_side_does_not_agree(tmp_path):
    shape = {"nose": (70, 5), "tail": (-70, 0)}
    found = measure_orientation(*data_set(tmp_path, [-8, -3, 0, 2, 5, 9], shape), mirrored_channels=None)
    assert found.direction > 0.97
    assert found.mirrored < 0.2


def test_things_that_point_every_way_do_not_agree(tmp_path):
    found = measure_orientation(*data_set(tmp_path, range(0, 360, 20)), mirrored_channels=[0, 2, 1, 3])
    assert found.direction == pytest.approx(0, abs=1e-6)
    assert found.axis == pytest.approx(0, abs=1e-6)


def test_things_that_point_up_or_down_share_an_axis(tmp_path):
    found = measure_orientation(*data_set(tmp_path, [0, 180] * 6), mirrored_channels=[0, 2, 1, 3])
    assert found.direction == pytest.approx(0, abs=1e-6)
    assert found.axis == pytest.approx(1)


def test_channels_keep_their_distances_in_one_object_and_not_in_several_that_lie_anywhere(tmp_path):
    draw = np.random.default_rng(0)
    solid = draw.uniform(-60, 60, (4, 3))  # seen from anywhere
    views = [np.linalg.qr(draw.normal(size=(3, 3)))[0][:, :2] for _ in range(100)]
    seen = [dict(zip("abcd", 100 + solid @ view, strict=True)) for view in views]
    assert measure_orientation(*save_labels(tmp_path, seen), mirrored_channels=None).steady
    assert measure_orientation(*data_set(tmp_path, range(0, 360, 20)), mirrored_channels=None).steady
    near_and_far = [
        {name: 100 + factor * (xy - 100) for name, xy in positions.items()}
        for positions, factor in zip(seen, np.linspace(0.1, 1, len(seen)), strict=True)
    ]
    assert measure_orientation(*save_labels(tmp_path, near_and_far), mirrored_channels=None).steady
    anywhere = [dict(zip("abcd", draw.uniform(0, 200, (4, 2)), strict=True)) for _ in range(100)]
    assert not measure_orientation(*save_labels(tmp_path, anywhere), mirrored_channels=None).steady


def test_a_channel_that_few_images_show_says_nothing_of_them_all(tmp_path):
    images = [turned(degrees) for degrees in range(0, 360, 4)]
    for positions in images[:8]:  # of 90, turned by up to 28 degrees
        positions["mark"] = np.array([195.0, 100.0])
    found = measure_orientation(*save_labels(tmp_path, images), mirrored_channels=None)
    assert found.direction == pytest.approx(0, abs=1e-6)
    assert found.axis == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("exchanged", "mirrored_hand"), [([0, 2, 1, 3], 1), ([0, 1, 2, 3], 0)])
def test_things_that_point_every_way_keep_their_hand(tmp_path, exchanged, mirrored_hand):
    found = measure_orientation(*data_set(tmp_path, range(0, 360, 20)), mirrored_channels=exchanged)
    assert found.hand == pytest.approx(1)
    # A mirror puts what is to the left of the head's direction to its right, unless the two change their names too.
    assert found.mirrored_hand == pytest.approx(mirrored_hand, abs=1e-6)


@pytest.mark.parametrize(("count", "rare"), [(16, 0), (16, 5), (140, 13)])  # of 140, 13 are less than a tenth
def test_things_that_are_seen_from_both_sides_have_no_hand(tmp_path, count, rare):
    upright = {"nose": (60, -20), "back": (0, -30), "paw": (40, 60), "tail": (-70, 0)}
    images = []
    for index in range(count):
        side = np.array([1 if index < count // 2 else -1, 1])
        images.append(turned(45 * index, {name: side * xy for name, xy in upright.items()}))
        # Of a channel that is in few images, all may happen to be seen from one side.
        if index >= rare > 0:
            del images[-1]["tail"]
    found = measure_orientation(*save_labels(tmp_path, images), mirrored_channels=None)
    assert found.hand == pytest.approx(0, abs=1e-6)


def test_channels_in_a_line_have_no_hand(tmp_path):
    shape = {"head": (0, -60), "neck": (4, -20), "tail": (0, 60)}  # 6 and 12 degrees off, to the same side in all
    found = measure_orientation(*data_set(tmp_path, range(0, 360, 20), shape), mirrored_channels=[0, 1, 2])
    assert (found.hand, found.mirrored_hand) == (0, 0)


def test_directions_are_those_of_pixels(tmp_path):
    path = write_data_set(tmp_path, [(200, 100)] * 5, [{"a": [[20, 20]], "b": [[120, 70]]}] * 5)
    found = measure_orientation(read_annotations(path, tmp_path), np.full((5, 2), (200, 100)), mirrored_channels=None)
    # Of (100, 50) and its mirror image (-100, 50), the mean of unit vectors is as long as the sine of the angle.
    assert found.mirrored == pytest.approx(50 / np.hypot(100, 50))


def test_nothing_is_told_by_one_channel_or_by_few_images(tmp_path):
    annotations, sizes = data_set(tmp_path, [0] * 8, {"only": (3, 4)})
    assert measure_orientation(annotations, sizes, None) is None
    annotations, sizes = data_set(tmp_path, [0, 0])
    assert measure_orientation(annotations, sizes, None) is None


@pytest.mark.parametrize(
    ("half", "apart", "tells"),
    # A twentieth of the image is 10 px; a tenth of the box's diagonal is 11.7 px, and 2.8 or 3 px in the small object.
    [(40, 9, False), (40, 11, True), (10, 2, False), (10, 4, True)],
)
def test_channels_whose_centres_are_near_tell_no_direction(tmp_path, half, apart, tells):
    Image.new("L", (200, 200)).save(tmp_path / "0.png")
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half + 100
    entry = {"image_path": "0.png", "outer": corners.tolist(), "inner": (corners * 0.9 + 10 + [0, apart]).tolist()}
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": [entry]}))
    annotations = read_annotations(tmp_path / "labels.json", tmp_path).subset([0] * 8)
    found = measure_orientation(annotations, np.full((8, 2), 200), mirrored_channels=None)
    assert (found is not None) == tells


def test_what_agrees_best_tells_the_direction_of_things_with_parts_that_move(tmp_path):
    entries = []
    for angle in np.radians(range(0, 360, 20)):
        hand, other = (100 + 80 * np.array([np.cos(a), np.sin(a)]) for a in (angle, 2 * angle))
        entries.append({"a": [[60, 100]], "b": [[140, 100]], "hand": [hand.tolist()], "other": [other.tolist()]})
    path = write_data_set(tmp_path, [(200, 200)] * len(entries), entries)
    annotations, sizes = read_annotations(path, tmp_path), np.full((len(entries), 2), 200)
    found = measure_orientation(annotations, sizes, mirrored_channels=None)
    assert found.direction == pytest.approx(1)  # one of the six pairs of channels


@pytest.mark.filterwarnings("error")
def test_images_of_unknown_size_are_passed_over(tmp_path):
    annotations, sizes = data_set(tmp_path, [0] * 8 + [180] * 8)
    sizes = np.where(np.arange(16)[:, None] < 8, sizes, 0)
    assert measure_orientation(annotations, sizes, None).direction == pytest.approx(1)


@pytest.mark.filterwarnings("error")
def test_a_channel_without_labels_whose_mirror_image_has_some_is_passed_over_in_silence(tmp_path):
    labels = {"head": [[100, 40]], "left": [[70, 100]], "right": [], "tail": [[100, 160]]}
    path = write_data_set(tmp_path, [(200, 200)] * 8, [labels] * 8)
    found = measure_orientation(read_annotations(path, tmp_path), np.full((8, 2), 200), mirrored_channels=[0, 2, 1, 3])
    assert (found.direction, found.mirrored, found.axis) == pytest.approx((1, 1, 1))
