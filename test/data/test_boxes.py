"""The rendered boxes: labels are exact projections, hidden corners are not labelled, the same seed gives the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keypoint_detection import cli
from keypoint_detection.data import boxes
from keypoint_detection.data.boxes.box import Box
from keypoint_detection.data.boxes.geometry import Camera, Faces
from keypoint_detection.data.boxes.renderer import find_visible, light_maps
from keypoint_detection.data.boxes.scene import sample_scene
from keypoint_detection.errors import InputError

CHANNELS = ["corner_keypoints", "flap_corner_keypoints"]
SHIPPED = Path(__file__).parents[1] / "test_dataset"


def project_independently(camera, point):
    """A 3x4 projection matrix, as textbooks have it, for one point."""
    height, width = camera.size
    intrinsics = np.array([[camera.focal_length, 0, width / 2], [0, camera.focal_length, height / 2], [0, 0, 1]])
    extrinsics = np.column_stack([camera.rotation, -camera.rotation @ camera.position])
    x, y, w = intrinsics @ extrinsics @ np.append(point, 1)
    return x / w, y / w, w


def test_camera_projects_a_point_worked_out_by_hand():
    # 2 m in front of the camera, 0.5 m to its right and 0.25 m above: 100 px/m * 0.5 / 2 and 0.25 / 2 from the centre.
    camera = Camera.looking_at(np.array([0.0, 0, 1]), np.array([0.0, -2, 1]), 0.0, 100.0, (80, 120))
    xy, depth = camera.project(np.array([[0.5, 0.0, 1.25]]))
    assert xy[0] == pytest.approx([60 + 25, 40 - 12.5])
    assert depth[0] == pytest.approx(2.0)


def test_box_corners_worked_out_by_hand():
    degrees = np.array([90, 180, 0, 225])
    box = Box(np.array([4.0, 2, 1]), np.array([10.0, 20]), np.pi / 2, np.full(4, 0.5), np.radians(degrees), 0.1)
    keypoints = box.keypoints()
    # Turned by 90 degrees the length runs along y: the corner (-2, -1) comes to (1, -2), and so on anticlockwise.
    assert keypoints["corner_keypoints"] == pytest.approx(
        np.array([[11, 18, 1], [11, 22, 1], [9, 22, 1], [9, 18, 1]], dtype=float)
    )
    flaps = keypoints["flap_corner_keypoints"].reshape(4, 2, 3)
    assert flaps[0] == pytest.approx(np.array([[11, 18.4, 1.5], [11, 21.6, 1.5]]))  # upright
    assert flaps[1] == pytest.approx(np.array([[10.8, 22.5, 1], [9.2, 22.5, 1]]))  # outwards
    assert flaps[2] == pytest.approx(np.array([[9.5, 21.6, 1], [9.5, 18.4, 1]]))  # over the opening
    drop = 0.5 / np.sqrt(2)
    assert flaps[3] == pytest.approx(np.array([[9.2, 18 - drop, 1 - drop], [10.8, 18 - drop, 1 - drop]]))
    # From a corner into the wall below it and into its upright flap; from that flap's outer corners into the flap.
    inwards = box.inwards()
    half = np.sqrt(2) / 2
    assert inwards["corner_keypoints"][0, 0] == pytest.approx([0, half, -half])
    assert inwards["corner_keypoints"][0, 2] == pytest.approx([0, half, half])
    assert inwards["flap_corner_keypoints"][:2, 0] == pytest.approx(np.array([[0, half, -half], [0, -half, -half]]))


def test_faces_hide_what_lies_behind_them_only():
    wall = Faces.create([0.0, 0, 0], [1, 0, 0], [0, 0, 1], tapers=0.25)
    eye = np.array([0.5, -1.0, 0.5])
    behind, before, on, beside = [0.5, 1, 0.5], [0.5, -0.5, 0.5], [0.5, 0, 0.5], [2.0, 1, 0.5]
    assert wall.hide(np.array([behind, before, on, beside]), eye).tolist() == [True, False, False, False]
    # At half its height the wall spans [0.125, 0.875] of its length; the ray to (x, 1, 0.5) passes it at (x + 0.5) / 2.
    inside, outside = [0.26 * 2 - 0.5, 1, 0.5], [0.24 / 2 * 2 - 0.5, 1, 0.5]
    assert wall.hide(np.array([inside, outside]), eye).tolist() == [True, False]
    disc = Faces.create([0.0, 0, 0], [1, 0, 0], [0, 0, 1], discs=True)
    assert disc.hide(np.array([[0.5, 1, 0.5], [-0.4, 1, 1.4]]), eye).tolist() == [True, False]


@settings(max_examples=15, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([(64, 64), (48, 80)]), st.integers(1, 2))
def test_labels_are_the_projections_of_visible_corners(seed, size, count):
    scene = sample_scene(np.random.default_rng(seed), size, count, 1.0)
    labelled = boxes.label(scene)
    shown = find_visible(scene, supersampling=4)
    height, width = size
    found = dict.fromkeys(CHANNELS, 0)
    for box in scene.boxes:
        for name, points in box.keypoints().items():
            for point in points:
                x, y, depth = project_independently(scene.camera, point)
                match = [
                    (u, v)
                    for u, v, d in labelled[name]
                    if abs(u * width - x) < 1e-4 and abs((1 - v) * height - y) < 1e-4 and abs(d - depth) < 1e-4
                ]
                found[name] += bool(match)
                if not (0 < x < width and 0 < y < height):
                    assert not match
                    continue
                # The depth buffer within two pixels of the corner: a visible one shows its own faces there, and where
                # everything around is farther away, nothing can have hidden it.
                rows = slice(max(0, int(4 * y) - 8), int(4 * y) + 9)
                columns = slice(max(0, int(4 * x) - 8), int(4 * x) + 9)
                around = shown.depth[rows, columns]
                assert not match or np.abs(around - depth).min() < 0.05 * depth
                assert match or around.min() < 0.999 * depth
    assert {name: len(points) for name, points in labelled.items()} == found


def test_a_corner_behind_a_plate_is_not_labelled():
    rng = np.random.default_rng(5)
    scene = sample_scene(rng, (64, 64), 1, 0.0)
    corner = scene.boxes[0].opening()[0]
    middle = (scene.camera.position + corner) / 2
    right, down = 0.02 * scene.camera.rotation[0], 0.02 * scene.camera.rotation[1]
    plate = Faces.create(middle - (right + down) / 2, right, down)
    before = scene.visible_keypoints()["corner_keypoints"]
    xy, _ = scene.camera.project(corner[None])
    assert np.isclose(before[:, :2], xy).all(axis=1).any()
    covered = type(scene)(**{**vars(scene), "faces": Faces.join([scene.faces, plate])})
    after = covered.visible_keypoints()["corner_keypoints"]
    assert not np.isclose(after[:, :2], xy).all(axis=1).any()


def test_depth_buffer_agrees_with_the_equation_of_the_plane():
    scene = sample_scene(np.random.default_rng(2), (32, 40), 1, 0.0)
    shown = find_visible(scene)
    for row in range(0, 32, 5):
        for column in range(0, 40, 5):
            face = shown.faces[row, column]
            assert face >= 0
            s, t = shown.s[row, column], shown.t[row, column]
            point = scene.faces.origins[face] + s * scene.faces.edges_s[face] + t * scene.faces.edges_t[face]
            x, y, depth = project_independently(scene.camera, point)
            assert (x, y) == pytest.approx((column + 1 / 2, row + 1 / 2), abs=2e-2)
            assert depth == pytest.approx(shown.depth[row, column], rel=1e-3)


def test_the_inside_of_a_closed_box_is_darker_than_its_top():
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, (32, 32), 1, 0.0)
    box = scene.boxes[0]
    closed = Box(box.size, box.position, box.yaw, np.full(4, box.size[1] / 2), np.zeros(4), 0.0)
    first = next(i for i in range(len(scene.faces)) if np.allclose(scene.faces.origins[i], box.corners()[0]))
    faces = Faces.join([scene.faces[:first], closed.faces(), scene.faces[first + 9 :]])
    maps = light_maps(type(scene)(**{**vars(scene), "faces": faces}))
    floor, lid = maps[first + 8][0], maps[first + 4][0]
    assert floor.mean() == pytest.approx(scene.lights.ambient.mean(), rel=0.05)
    assert lid.mean() > 2 * floor.mean()


def test_same_seed_same_bytes_and_more_images_only_add(tmp_path):
    arguments = {"image_size": "32 48", "seed": 11, "negatives": 0.4, "workers": 0}
    first = boxes.generate(tmp_path / "a", count=3, **arguments)
    second = boxes.generate(tmp_path / "b", count=5, **arguments)
    other = boxes.generate(tmp_path / "c", count=3, **{**arguments, "seed": 12})
    entries = [json.loads(path.read_text())["dataset"] for path in (first, second, other)]
    assert entries[0] == entries[1][:3]
    assert entries[0] != entries[2]
    for entry in entries[0]:
        content = [(folder / entry["image_path"]).read_bytes() for folder in (first.parent, second.parent)]
        assert content[0] == content[1]
        with Image.open(first.parent / entry["image_path"]) as image:
            assert (image.mode, image.size) == ("RGB", (48, 32))


def test_negatives_have_no_keypoints(tmp_path):
    path = boxes.generate(tmp_path, count=3, image_size=32, negatives=1.0, workers=0)
    for entry in json.loads(path.read_text())["dataset"]:
        assert [entry[name] for name in CHANNELS] == [[], []]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image_size": "a"}, "image_size"),
        ({"image_size": "32 32 32"}, "image_size"),
        ({"image_size": 4}, "image_size"),
        ({"count": 0}, "count"),
        ({"negatives": 1.5}, "negatives"),
        ({"max_boxes": 0}, "max_boxes"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(InputError, match=named):
        boxes.generate(tmp_path, **{"count": 1, **arguments})


def test_shipped_images_are_what_the_generator_makes():
    entries = json.loads((SHIPPED / "annotations.json").read_text())["dataset"]
    assert len(entries) == 4
    assert len({len(entry["flap_corner_keypoints"]) for entry in entries}) > 1
    for index, entry in enumerate(entries):
        image, scene = boxes.sample(index, (128, 128), seed=3)
        labels = boxes.label(scene)
        for name in CHANNELS:
            assert np.array(entry[name]) == pytest.approx(np.array(labels[name]), abs=1e-5)
        with Image.open(SHIPPED / entry["image_path"]) as shipped:
            assert np.abs(np.asarray(shipped).astype(int) - image).mean() < 1


def command(*arguments):
    return cli.run("keypoint_detection.boxes_command", list(map(str, arguments)))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "missing: --output (-h lists the flags)"),
        (["--output", ""], "--output: is empty, expected a folder"),
        (["--output", "file"], "--output file: cannot be written there (Not a directory)"),
        (["--output", "out", "--seed", "-1"], "seed is -1, expected a number from 0 to 1000000000000000000"),
        (["--output", "out", "--cont", "3"], "unknown flag: --cont 3 (did you mean --count?)"),
        (
            ["--output", "out", "--image_size", "100000"],
            'image_size is 100000, expected e.g. "256" or "240 320" (height width), each from 16 to 4096',
        ),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert command(*words) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "out").exists()


def test_images_of_a_larger_data_set_are_not_taken_for_some_of_a_smaller_one(tmp_path, capsys):
    small = ["--output", tmp_path, "--count", 1, "--image_size", 16, "--workers", 0]
    assert command(*small) == 0
    (tmp_path / "images" / "mine.png").write_text("a name that the command does not write")
    assert command(*small) == 0
    labels = (tmp_path / "annotations.json").read_bytes()
    (tmp_path / "images" / "000001.png").write_text("an image of a larger run")
    (tmp_path / "images" / "000002.png").write_text("another")
    assert command(*small) == 2
    assert "images holds 2 images of a larger data set, such as 000001.png" in capsys.readouterr().err
    assert (tmp_path / "annotations.json").read_bytes() == labels
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_an_interrupted_rendering_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(boxes, "sample", interrupt)
    assert command("--output", tmp_path, "--workers", 0) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
