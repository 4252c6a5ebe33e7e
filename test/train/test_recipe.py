import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET
from PIL import Image

from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import Unet
from keypoint_detection.train import flags, image_sizes
from keypoint_detection.train.build import decoding_caps, prepare_data
from keypoint_detection.train.choices import Choices
from keypoint_detection.train.image_sizes import (
    choose_size,
    extents,
    keypoint_gap,
    warn_of_fine_distances,
    warn_of_large_parts,
)
from keypoint_detection.train.recipe import Device, choose_recipe


@pytest.fixture(scope="module")
def annotations():
    return read_annotations(TEST_DATASET / "annotations.json", TEST_DATASET)


def choose(annotations, size=(640, 480), device="cpu", flip_pairs="auto", **given):
    device = Device(device) if isinstance(device, str) else device
    return choose_recipe(annotations, np.array([size] * len(annotations)), device, flip_pairs, **given)


def arrows(folder, angles):
    """Labels of two channels, one image for each direction from the first to the second in degrees."""
    entries = []
    for index, angle in enumerate(np.radians(angles)):
        Image.new("L", (64, 64)).save(folder / f"{index}.png")
        tip = [32 + 20 * np.cos(angle), 32 + 20 * np.sin(angle)]
        entries.append({"image_path": f"{index}.png", "root": [[32, 32]], "tip": [tip]})
    (folder / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return read_annotations(folder / "labels.json", folder)


def test_objects_that_lie_anywhere_tell_no_direction(tmp_path):
    draw = np.random.default_rng(0)
    entries = []
    for index in range(100):
        Image.new("L", (8, 8)).save(tmp_path / f"{index}.png")
        entries.append(
            {"image_path": f"{index}.png"} | {name: draw.uniform(0, 100, (1, 2)).tolist() for name in "abcd"}
        )
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    recipe = choose(read_annotations(tmp_path / "labels.json", tmp_path), (100, 100))
    assert recipe.reasons["rotation"] == "the labels indicate no direction"
    assert (recipe.rotation, recipe.horizontal_flip, recipe.vertical_flip) == (30, 0.5, 0)


def test_a_small_object_tells_its_direction_too(tmp_path):
    recipe = choose(arrows(tmp_path, [0] * 10), (1000, 800))  # root and tip are 20 px apart
    assert (recipe.rotation, recipe.horizontal_flip) == (15, 0)


@pytest.mark.parametrize(
    ("counts", "device", "image_size", "crop_size"),
    [
        ((16, 16, 16, 9, 25), "cpu", 864, 288),  # objects 1131 / 4 px across: no more than three times 288 px
        ((16, 16, 16, 9, 25), "gpu", 992, 640),  # no more than the image, in multiples of 32 px
        ((9, 9, 9, 4, 16), "cpu", 288, None),  # the corners of one object, which fill an image of the side 1000
        ((16, 16, 16, 16, 16), "cpu", 288, None),
        ((16, 16, 16, 16, 16), "gpu", 640, None),
        ((16, 16, 16, 16, 16, 16, 0, 0), "cpu", 288, None),  # some show nothing
        ((16, 16, 16, 9, 25, 0), "cpu", 864, 288),
    ],
)
def test_many_keypoints_of_a_channel_in_varying_numbers_are_of_as_many_objects(
    tmp_path, counts, device, image_size, crop_size
):
    entries = []
    for index, count in enumerate(counts):
        Image.new("L", (8, 8)).save(tmp_path / f"{index}.png")
        steps = np.linspace(100, 900, math.isqrt(count)).tolist()
        points = [[x, y] for x in steps for y in steps]
        entries.append({"image_path": f"{index}.png", "hole": points, "rim": points[:2]})
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    labels = read_annotations(tmp_path / "labels.json", tmp_path)
    recipe = choose(labels, (1000, 1000), device)
    assert recipe.image_size == [image_size] * 2
    assert recipe.train_crop_size == (crop_size and [crop_size] * 2)
    if crop_size:
        assert recipe.reasons["image_size"].endswith("px, and an object extends across about 28% of it")
        # at the ninetieth percentile, between 1131 / 4 and 1131 / 3 px of 1000
        across = round((0.4 * 1.1314 / 4 + 0.6 * 1.1314 / 3) * image_size)
        assert recipe.reasons["train_crop_size"].endswith(f"in which most objects extend across at most {across} px")
    whole = choose(labels, (1000, 1000), device, train_crop_size="none")
    assert (whole.image_size, whole.train_crop_size) == ([288 if device == "cpu" else 640] * 2, None)


@pytest.mark.parametrize(
    ("few", "median", "many", "objects"), [(30, 35, 39, 1), (30, 35, 40, 40), (4, 9, 20, 1), (4, 10, 20, 20)]
)
def test_keypoints_are_of_as_many_objects_from_ten_on_and_where_their_numbers_vary_by_a_third(
    few, median, many, objects
):
    labels = SimpleNamespace(counts=lambda: np.array([[few, 1]] * 3 + [[median, 0]] * 5 + [[0, many]] * 3))
    assert image_sizes._numbers_of_objects(labels)[-1] == objects


def test_reasons_name_parts_and_the_diagonal_that_keypoints_span(tmp_path):
    entries = []
    for index in range(21):
        Image.new("L", (480, 360)).save(tmp_path / f"{index}.png")
        corners = [[60, 40], [400, 340]] if index < 10 else [[60, 40], [100, 70]]  # 453 px apart, and 50 px
        entries.append({"image_path": f"{index}.png", "corner": corners})
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}), encoding="utf-8")
    recipe = choose(read_annotations(tmp_path / "labels.json", tmp_path), (480, 360), image_size=416)
    assert recipe.train_crop_size == [288, 288]
    reason = "faster than whole images of 416 px, in which most objects extend across at most 393 px"
    assert recipe.reasons["train_crop_size"] == reason
    assert recipe.reasons["heatmap_stride"].startswith("the shorter side of the crops is then 288 px")


@pytest.mark.parametrize(
    ("size", "accelerator", "image_size", "stride"),
    [
        ((1920, 1080), "cpu", [512, 512], 4),  # boxes that are 0.69 of a side across: 288 px by 1.2 / 0.69
        ((1920, 1080), "gpu", [1120, 1120], 4),
        ((299, 299), "cpu", [256, 256], 4),
        ((299, 299), "gpu", [288, 288], 4),
        ((288, 288), "gpu", None, 4),
        ((320, 240), "cpu", [256, 256], 4),
        ((329, 329), "cpu", [256, 256], 4),
        ((330, 330), "cpu", [288, 288], 4),
        ((40, 48), "cpu", None, 1),
    ],
)
def test_size_and_stride_go_by_the_images_and_the_device(annotations, size, accelerator, image_size, stride):
    recipe = choose(annotations, size, accelerator)
    assert (recipe.image_size, recipe.heatmap_stride) == (image_size, stride)
    assert {"image_size", "heatmap_stride", "heatmap_sigma", "rotation"} <= recipe.reasons.keys()


@pytest.mark.parametrize(
    ("larger", "accelerator", "image_size", "reason"),
    [
        ((3000, 2000), "cpu", [128, 128], "the median longer side of the images is 100 px, the largest 3000 px"),
        ((3000, 2000), "gpu", [128, 128], "the median longer side of the images is 100 px, the largest 3000 px"),
        ((200, 257), "cpu", [128, 128], "the median longer side of the images is 100 px, the largest 257 px"),
        ((200, 256), "cpu", None, "the median longer side of the images is 100 px"),
        ((640, 200), "gpu", None, "the median longer side of the images is 100 px"),
        ((60, 100), "cpu", None, "the longer side of the images is 100 px"),
    ],
)
def test_images_keep_their_sizes_only_where_the_largest_is_small_too(
    annotations, larger, accelerator, image_size, reason
):
    sizes = np.array([(100, 100)] * len(annotations))
    sizes[: (len(sizes) - 1) // 2] = larger
    recipe = choose_recipe(annotations, sizes, Device(accelerator), "auto")
    assert (recipe.image_size, recipe.reasons["image_size"]) == (image_size, reason)


@pytest.mark.parametrize(
    ("size", "device", "image_size", "sigma"),
    [
        (
            (1500, 200),
            "cpu",
            672,
            4.25,
        ),  # 288 px by the root of 7.5 / (4 / 3), 683; then 672x90, of which that is 283 px
        ((200, 1500), "cpu", 672, 4.25),
        ((1500, 200), "gpu", 1472, 9.3),  # 640 px likewise, 1518, but no larger than the image; that is 620 px
        ((640, 480), "cpu", 288, 4.32),
        ((400, 400), "cpu", 288, 4.32),
        ((320, 80), "cpu", 320, 3.2),  # 256 px by the root of 3, 443; sigma is at least 0.8 of 4 px
    ],
)
def test_flat_images_keep_as_many_pixels_as_others(annotations, size, device, image_size, sigma):
    recipe = choose(annotations, size, device, train_crop_size="none", heatmap_stride=4)
    assert recipe.image_size in ([image_size] * 2, None)
    assert recipe.heatmap_sigma == pytest.approx(sigma, abs=0.02)


def test_keypoints_that_are_close_get_a_fine_stride_and_a_small_sigma(tmp_path):
    for index in range(3):
        Image.new("L", (64, 64)).save(tmp_path / f"{index}.png")
    entries = [{"image_path": f"{index}.png", "a": [[10, 10], [13, 14], [40, 40]], "b": [[1, 1]]} for index in range(3)]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    close, sizes = read_annotations(tmp_path / "labels.json", tmp_path), np.full((3, 2), 64)
    assert keypoint_gap(close, sizes, None) == pytest.approx(5)
    assert keypoint_gap(close, sizes, (128, 128)) == pytest.approx(10)
    recipe = choose_recipe(close, sizes, Device("cpu"), "auto")
    assert recipe.heatmap_stride == 2
    assert recipe.heatmap_sigma == pytest.approx(1.6)
    assert choose_recipe(close, sizes, Device("cpu"), "auto", heatmap_stride=1).heatmap_sigma == pytest.approx(
        0.015 * 64
    )


def test_neighbours_are_three_sigmas_apart(tmp_path):
    Image.new("L", (240, 240)).save(tmp_path / "0.png")
    entry = {"image_path": "0.png", "corner": [[50, 60], [56, 60], [56, 66]]}
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": [entry]}))
    close = read_annotations(tmp_path / "labels.json", tmp_path)
    # Without them it would be 3.6 px, 0.015 of the side.
    assert choose(close, (240, 240), heatmap_stride=1, image_size="none").heatmap_sigma == pytest.approx(2)


def test_the_gap_in_a_crowd_is_that_of_a_grid_in_which_one_keypoint_has_a_nearer_neighbour(tmp_path, monkeypatch):
    monkeypatch.setattr("keypoint_detection.train.image_sizes.DISTANCES_AT_ONCE", 100)  # 4 of 26 keypoints at once
    Image.new("L", (64, 64)).save(tmp_path / "0.png")
    grid = [[10 * column + 5, 10 * row + 5] for row in range(5) for column in range(5)]
    labels = {"coordinates": "pixel", "dataset": [{"image_path": "0.png", "a": [*grid, [48, 49]], "b": grid[:2]}]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    crowd = read_annotations(tmp_path / "labels.json", tmp_path)
    # Of 28 distances two are 5, of the keypoint at (48, 49) and of the one at (45, 45); the tenth percentile lies at
    # place 2.7 from 0, beyond them.
    assert keypoint_gap(crowd, np.array([[64, 64]]), None) == pytest.approx(10)
    assert keypoint_gap(crowd.keep(torch.arange(28) > 10), np.array([[64, 64]]), None) == pytest.approx(5 + 5 * 0.6)


def test_sigma_grows_with_the_image_and_is_no_smaller_than_most_of_a_cell(annotations):
    assert choose(annotations, (256, 256)).heatmap_sigma == pytest.approx(0.015 * 256)
    assert choose(annotations, (160, 160)).heatmap_sigma == pytest.approx(0.8 * 4)


@pytest.mark.parametrize(("degrees", "share"), [(5, 0.7), (25, 0.7), (27, 1.0), (180, 1.0)])
def test_images_are_changed_to_the_end_unless_the_labels_hardly_turn(tmp_path, degrees, share):
    turned = arrows(tmp_path, np.linspace(-degrees, degrees, 21))
    assert choose(turned, (64, 64)).augmented_share == share


@pytest.mark.parametrize("channels", [["root", "tip"], ["root"]], ids=["along one axis", "no direction"])
def test_images_are_changed_to_the_end_where_no_upright_is_known(tmp_path, channels):
    entries = []
    for index in range(20):
        Image.new("L", (64, 64)).save(tmp_path / f"{index}.png")
        points = {"root": [[32, 32]], "tip": [[12 if index % 2 else 52, 32]]}
        entries.append({"image_path": f"{index}.png"} | {name: points[name] for name in channels})
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    turned = read_annotations(tmp_path / "labels.json", tmp_path)
    recipe = choose(turned, (64, 64))
    assert recipe.augmented_share == 1
    assert ("axis" in recipe.reasons["augmented_share"]) == (len(channels) == 2)
    # Nothing tells that the one keypoint of an image is not, say, the left one of two that look alike.
    assert ("use 0" in recipe.reasons["horizontal_flip"]) == (len(channels) == 1)


def test_the_gap_between_keypoints_shrinks_with_an_oblong_image(tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "0.png")
    entries = [{"image_path": "0.png", "a": [[10, 10], [20, 10]]}]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    oblong = read_annotations(tmp_path / "labels.json", tmp_path)
    assert keypoint_gap(oblong, np.array([[40, 20]]), (20, 20)) == pytest.approx(5)
    assert keypoint_gap(oblong, np.array([[40, 20]]), (20, 40)) == pytest.approx(10)  # height and width


def test_directions_along_an_axis_vary_by_half_of_what_their_doubles_do(tmp_path):
    recipe = choose(arrows(tmp_path, [-25, 25, 155, 205] * 5), (64, 64))
    # Doubled, the angles are 50 degrees to either side: sqrt(-2 ln cos 50) is 53.9 degrees.
    assert (recipe.rotation, recipe.horizontal_flip, recipe.vertical_flip) == (27, 0.5, 0.5)
    assert choose(arrows(tmp_path, [0, 180] * 10), (64, 64)).rotation == 15  # the least


@pytest.mark.parametrize(("degrees", "flip"), [(52, 0.0), (55, 0.5), (90, 0.5)])
def test_images_are_mirrored_unless_that_turns_what_is_in_them(tmp_path, degrees, flip):
    # The mean of a direction and its mirror image is as long as the sine: 0.788, 0.819 and 1.
    recipe = choose(arrows(tmp_path, [degrees] * 10), (64, 64))
    assert (recipe.rotation, recipe.horizontal_flip, recipe.vertical_flip) == (15, flip, 0)


@pytest.mark.parametrize("angles", [range(0, 360, 18), [0] * 20], ids=["every way", "upright"])
@pytest.mark.parametrize(
    ("names", "flip"), [(("left", "right"), 0.5), (("first", "second"), 0.0), (("lpaw", "rpaw"), 0.0)]
)
def test_images_are_not_mirrored_where_sides_would_change_that_names_do_not_tell(tmp_path, angles, names, flip, caplog):
    entries = []
    for index, angle in enumerate(np.radians(list(angles))):
        Image.new("L", (200, 200)).save(tmp_path / f"{index}.png")
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # Upright, the many pairs along the body point the same way in a mirrored image.
        shape = {"head": (0, -80), "neck": (0, -40), "tail": (0, 80), names[0]: (-12, 10), names[1]: (12, 10)}
        entries.append(
            {"image_path": f"{index}.png"} | {name: [(turn @ xy + 100).tolist()] for name, xy in shape.items()}
        )
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    labelled = read_annotations(tmp_path / "labels.json", tmp_path)
    recipe = choose(labelled, (200, 200))
    assert (recipe.horizontal_flip, recipe.vertical_flip) == (flip, 0)
    # What keeps images from being mirrored is said where it belongs, and once.
    not_mirrored = [name for name, reason in recipe.reasons.items() if "mirrored" in reason]
    assert not_mirrored == ([] if flip else ["horizontal_flip"])
    assert ("--flip_pairs" in recipe.reasons["horizontal_flip"]) == (flip == 0)
    assert ("lpaw, rpaw" in recipe.reasons["horizontal_flip"]) == ("lpaw" in names)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert choose(labelled, (200, 200), flip_pairs=f"{names[0]}={names[1]}").horizontal_flip == 0.5


def test_along_one_axis_neither_flip_is_chosen_where_names_tell_sides_without_a_partner(tmp_path):
    entries = []
    for index in range(20):
        Image.new("L", (64, 64)).save(tmp_path / f"{index}.png")
        points = {"left": [[32, 32]], "tip": [[12 if index % 2 else 52, 32]]}
        entries.append({"image_path": f"{index}.png"} | points)
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    recipe = choose(read_annotations(tmp_path / "labels.json", tmp_path), (64, 64))
    assert (recipe.horizontal_flip, recipe.vertical_flip) == (0, 0)
    concerned = [name for name, reason in recipe.reasons.items() if "--flip_pairs" in reason]
    assert sorted(concerned) == ["horizontal_flip", "vertical_flip"]


def test_a_sigma_that_is_larger_than_the_images_is_refused(annotations):
    assert choose(annotations, (640, 480), image_size=96, heatmap_sigma=96.0).heatmap_sigma == 96
    wrong = "--heatmap_sigma 97: expected at most 96, the longer side of the network's input in pixels"
    with pytest.raises(InputError, match=wrong):
        choose(annotations, (640, 480), image_size=96, heatmap_sigma=97.0)
    assert choose(annotations, (2, 2), heatmap_stride=4).heatmap_sigma == pytest.approx(3.2)  # the least of that stride


def test_what_is_given_is_kept_and_needs_no_reason(annotations):
    given = {
        "image_size": "100 200", "heatmap_stride": 2, "heatmap_sigma": 3.5, "batch_size": 7, "learning_rate": 0.1,
        "precision": "bf16-mixed", "rotation": 5.0, "horizontal_flip": 0.25, "vertical_flip": 1.0,
        "augment_train": True, "augmented_share": 0.4, "train_crop_size": "60 80", "progressive_resizing": 0.1,
    }  # fmt: skip
    recipe = choose(annotations, **given)
    assert recipe.values() == given | {"image_size": [100, 200], "train_crop_size": [60, 80]}
    assert recipe.reasons == {}


@pytest.mark.parametrize(
    ("trained", "growing", "rate", "reason"),
    [
        ([], 0.6, 0.006, "from new weights"),
        (["nose", "tail"], 0.6, 0.006, "from weights that know 0 of 2 channels"),
        (["nose", "corner_keypoints"], 0.0, 0.002, "from weights that know 1 of 2 channels"),
        (["flap_corner_keypoints", "corner_keypoints"], 0.0, 0.002, "from weights that know 2 of 2 channels"),
    ],
)
def test_what_trained_weights_know_is_not_undone_by_small_images_and_a_large_rate(
    annotations, trained, growing, rate, reason
):
    recipe = choose(annotations, (256, 256), trained_channels=trained)
    assert (recipe.progressive_resizing, recipe.learning_rate) == (growing, rate)
    assert reason in recipe.reasons["progressive_resizing"]
    assert reason in recipe.reasons["learning_rate"]
    given = choose(annotations, trained_channels=trained, progressive_resizing=0.5, learning_rate=0.01)
    assert (given.progressive_resizing, given.learning_rate) == (0.5, 0.01)


def test_none_keeps_the_images_as_they_are(annotations):
    assert choose(annotations, image_size="none").image_size is None


@pytest.mark.parametrize(
    ("count", "by_heart", "augmented", "reason"),
    [
        (9, True, False, "for 9 images, all of them validation images too"),
        (9, False, True, "for 9 images"),
        (1, False, True, "for 1 image"),
        (10, True, True, "for 10 images"),
    ],
)
def test_a_handful_of_images_is_learnt_as_it_is_where_it_validates_too(annotations, count, by_heart, augmented, reason):
    few = annotations.subset([index % 4 for index in range(count)])
    recipe = choose(few, by_heart=by_heart)
    assert (recipe.augment_train, recipe.reasons["augment_train"]) == (augmented, reason)
    assert choose(few, by_heart=by_heart, augment_train=not augmented).augment_train is not augmented


@pytest.mark.parametrize(("given", "augmented"), [(str(TEST_DATASET / "annotations.json"), False), (None, True)])
def test_what_is_learnt_by_heart_is_told_from_the_files(given, augmented):
    files = {"json_validation_dataset_path": given, "validation_split_ratio": 0.25, "augment_train": "auto"}
    config = flags.build_parser().parse_object(DEFAULT_HYPERPARAMETERS | files).as_dict()
    assert prepare_data(config)[1].augment_train is augmented


@pytest.mark.parametrize("augmented", [True, False])
def test_how_images_are_changed_is_told_only_where_they_are(annotations, augmented, caplog):
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        recipe = choose(annotations, augment_train=augmented)
    changes = {"rotation", "horizontal_flip", "vertical_flip", "augmented_share"}
    assert changes <= recipe.reasons.keys()
    told = {message.split()[0].removeprefix("--") for message in caplog.messages}
    assert told == (recipe.reasons.keys() if augmented else recipe.reasons.keys() - changes)


@pytest.mark.parametrize(
    ("size", "accelerator", "batch"),
    [
        ((64, 64), "cpu", 16), ((48, 32), "cpu", 16), ((96, 96), "cpu", 16), ((128, 128), "cpu", 8),
        ((128, 160), "cpu", 8), ((192, 96), "cpu", 8), ((160, 160), "cpu", 8), ((320, 240), "cpu", 4),
        ((640, 480), "cpu", 4), ((64, 64), "gpu", 16),
    ],
)  # fmt: skip
def test_batches_hold_more_of_small_images_on_a_cpu(annotations, size, accelerator, batch):
    recipe = choose(annotations, size, accelerator)
    assert recipe.batch_size == batch
    assert accelerator in recipe.reasons["batch_size"]


@pytest.mark.parametrize(
    ("accelerator", "fast", "precision", "reason"),
    [
        ("gpu", True, "bf16-mixed", "the tensor cores of the GPU are made for it"),
        ("gpu", False, "32-true", "only NVIDIA GPUs from Ampere on are sure to be faster with bf16"),
        ("cpu", False, "32-true", "some CPUs are faster with bf16, others many times slower"),
    ],
)
def test_16_bits_are_chosen_where_they_are_sure_to_be_faster(annotations, accelerator, fast, precision, reason, caplog):
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        recipe = choose(annotations, device=Device(accelerator, fast))
    assert recipe.precision == precision
    assert f"--precision {precision} (auto: {reason})" in caplog.messages
    given = choose(annotations, device=Device(accelerator, fast), precision="32")
    assert given.precision == "32"


@pytest.mark.parametrize(
    ("accelerator", "capabilities", "hip", "precision"),
    [
        ("auto", [(8, 0)], None, "bf16-mixed"),
        ("gpu", [(8, 9), (12, 0)], None, "bf16-mixed"),
        ("cpu", [(8, 0)], None, "32-true"),
        ("auto", [(8, 0), (7, 5)], None, "32-true"),  # --devices may name either
        ("auto", [(7, 0)], None, "32-true"),
        ("auto", [(11, 0)], "6.4", "32-true"),
        ("auto", [], None, "32-true"),
    ],
)
def test_the_gpus_of_the_machine_say_whether_16_bits_are_faster(accelerator, capabilities, hip, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[torch.device(device).index])
    monkeypatch.setattr(torch.version, "hip", hip)
    given = DEFAULT_HYPERPARAMETERS | {"accelerator": accelerator, "precision": "auto"}
    config = flags.build_parser().parse_object(given).as_dict()
    assert prepare_data(config)[1].precision == precision


@pytest.mark.parametrize(
    ("most", "batch", "reason"),
    [
        (400.0, 16, "the device is gpu"),
        (16.0, 16, "the device is gpu"),
        (15.9, 8, "the device is gpu, with memory for 15 images of 480x640 px"),
        (3.2, 2, "the device is gpu, with memory for 3 images of 480x640 px"),
        (0.4, 1, "the device is gpu, with memory for 0 images of 480x640 px"),
    ],
)
def test_batches_hold_what_fits_into_the_gpu(annotations, most, batch, reason):
    asked = []
    fitting = lambda *arguments: asked.append(arguments) or most  # noqa: E731
    gpu = Device("gpu", fitting=fitting)
    recipe = choose(annotations, device=gpu, image_size="none", train_crop_size="none")
    assert (recipe.batch_size, recipe.reasons["batch_size"]) == (batch, reason)
    assert asked == [(recipe.heatmap_stride, 480, 640)]
    assert recipe.learning_rate == pytest.approx(6e-3 * min(1, (batch / 4) ** 0.5), abs=1e-5)
    assert choose(annotations, device=Device("gpu", fitting=lambda *_: 1 / 0), batch_size=16).batch_size == 16


def test_a_small_gpu_gets_small_batches_and_the_same_weights(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    memory = {0: 2**40, 1: 50_000_000}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory[device.index])
    )
    of_the_network = ("n_channels", "n_downsampling_layers", "n_resnet_blocks")
    given = {name: value for name, value in DEFAULT_HYPERPARAMETERS.items() if name not in of_the_network}
    given |= {"accelerator": "auto", "batch_size": "auto", "image_size": "none", "heatmap_stride": 4}
    config = flags.build_parser().parse_object(given).as_dict()
    state = torch.get_rng_state()
    recipe = prepare_data(config)[1]
    # The default network keeps 165 bytes per pixel, 2.7 MB of an image of 128x128, of which 25 MB hold nine.
    assert recipe.batch_size == 8
    assert recipe.reasons["batch_size"] == "the device is gpu, with memory for 9 images of 128x128 px"
    assert torch.equal(torch.get_rng_state(), state)
    memory[1] = 2**40
    assert prepare_data(config)[1].batch_size == 16

    def ask_for_a_value(network, images):
        return forward(network, images * images.amax().item())

    memory[1], forward = 1000, Unet.forward
    monkeypatch.setattr(Unet, "forward", ask_for_a_value)  # which is not there without computing
    assert prepare_data(config)[1].batch_size == 16


def test_small_batches_take_smaller_steps(annotations):
    rates = [choose(annotations, batch_size=size).learning_rate for size in (1, 4, 64)]
    assert rates == [pytest.approx(3e-3), pytest.approx(6e-3), pytest.approx(6e-3)]


@pytest.mark.parametrize("wrong", [{"image_size": "x"}, {"train_crop_size": "x"}])
def test_values_out_of_range_are_refused(annotations, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        choose(annotations, **wrong)


def test_pairs_that_do_not_fit_the_channels_are_told_before_anything_is_chosen(annotations, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="flip_pairs: 'a=b' names 'a', expected one of"):
        choose(annotations, flip_pairs="a=b")
    assert not caplog.records


def test_images_of_unknown_size_still_get_a_recipe(annotations):
    assert choose(annotations, size=(0, 0)).heatmap_stride == 4


def labels_across(folder, across, size):
    """Labels of twelve images of `size` (width, height), whose two keypoints lie so many pixels apart in each image."""
    entries = []
    for index, apart in enumerate(np.broadcast_to(across, 12).tolist()):
        Image.new("L", size).save(folder / f"{index}.png")
        far = [min(apart, 0.8 * size[0]), math.sqrt(max(0, apart**2 - (0.8 * size[0]) ** 2))]
        entries.append(
            {"image_path": f"{index}.png", "a": [[10 + index, 10]], "b": [[10 + index + far[0], 10 + far[1]]]}
        )
    (folder / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    return read_annotations(folder / "labels.json", folder)


@pytest.mark.parametrize(
    ("across", "accelerator", "given", "image_size", "crop_size"),
    [
        (870, "cpu", {}, 288, None),  # 90 % of the images, for 1.2 times which a part would be most of an image
        (720, "cpu", {}, 448, 288),  # 75 %: 288 px by 1.2 / 0.75 is 461 px
        (250, "cpu", {}, 864, 288),  # no more than three times as large
        (870, "gpu", {}, 640, None),
        (850, "gpu", {}, 864, 640),  # 640 px by 1.2 / 0.885 is 867 px
        (100, "gpu", {}, 960, 640),  # no larger than the images
        # A quarter of the images counts for the parts, not for the size: 700 px are 630 of 864 px, and by 1.6 394 px.
        ([250] * 8 + [700] * 3 + [900], "cpu", {}, 864, 416),
        (720, "cpu", {"train_crop_size": "none"}, 288, None),
        (720, "cpu", {"train_crop_size": None}, 288, None),
        (720, "cpu", {"train_crop_size": "none", "image_size": 288}, 288, None),
        (300, "cpu", {"image_size": 288}, 288, None),
        (870, "cpu", {"train_crop_size": 160}, 288, 160),
        (300, "cpu", {"image_size": "none"}, None, 288),
        (720, "cpu", {"image_size": "none"}, None, 480),  # 720 px by 1.6 is 450 px
        (840, "cpu", {"image_size": "none"}, None, 544),
        (900, "cpu", {"image_size": "none"}, None, None),  # 94 % of the images, which the objects fill
        # The largest objects ask for parts of 750 px, which would be most of an image.
        ([250] * 9 + [1200] * 3, "cpu", {"image_size": "none"}, None, None),
    ],
)
def test_small_objects_get_larger_images_and_parts_of_them(tmp_path, across, accelerator, given, image_size, crop_size):
    small = labels_across(tmp_path, across, (960, 720))
    recipe = choose(small, (960, 720), accelerator, **given)
    assert recipe.image_size == (image_size and [image_size, image_size])
    assert recipe.train_crop_size == (crop_size and [crop_size, crop_size])
    assert ("train_crop_size" in recipe.reasons) == (crop_size is not None and "train_crop_size" not in given)


@pytest.mark.parametrize(
    ("across", "size"),
    [
        (845, (960, 720)),  # 88 %: 288 px by 1.2 / 0.88 is 393 px, and 288 px are three quarters of the 384 next to it
        (100, (380, 280)),  # of 352 px, no larger than the images, 288 px would be most
        ([250] * 9 + [1200] * 3, (960, 960)),  # parts of 864 px for the last ones would be of 1.25 * 864 / 1.6 = 675 px
    ],
)
def test_images_are_no_larger_than_otherwise_where_parts_of_them_would_not_pay(tmp_path, across, size):
    recipe = choose(labels_across(tmp_path, across, size), size)
    assert (recipe.image_size, recipe.train_crop_size) == ([288, 288], None)


def test_images_are_no_larger_than_most_of_them_are_nor_than_a_few_times_what_trains_well(tmp_path):
    small = labels_across(tmp_path, 100, (960, 720))
    mixed = choose_recipe(small, np.array([(640, 480)] * 11 + [(4000, 3000)]), Device("cpu"), "auto")
    assert (mixed.image_size, mixed.train_crop_size) == ([640, 640], [288, 288])
    large = choose(small, (2560, 1920), "gpu")
    assert (large.image_size, large.train_crop_size) == ([1280, 1280], [640, 640])


def test_sigma_and_stride_go_by_the_parts(tmp_path):
    small = labels_across(tmp_path, 150, (960, 720))
    assert choose(small, (960, 720)).heatmap_sigma == pytest.approx(0.015 * 288)
    assert choose(small, (960, 720), train_crop_size=100).heatmap_stride == 2
    assert choose(small, (960, 720), train_crop_size=2000).heatmap_sigma == pytest.approx(0.015 * 864)


def test_of_a_large_set_images_from_all_of_it_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("keypoint_detection.train.image_sizes.MOST_IMAGES", 2)  # the first and the seventh
    labels = labels_across(tmp_path, [96] * 6 + [480] * 6, (960, 720))
    assert extents(labels, np.array([(960, 720)] * 12)) == pytest.approx([0.1, 0.5])
    assert extents(labels, np.array([(720, 960)] * 12)) == pytest.approx([0.1, 0.5])  # of the longer side


def test_the_sides_of_what_the_network_sees_are_those_of_images_fitted_into_a_flat_size(annotations):
    recipe = choose(annotations, (640, 480), image_size="96 256")  # into which they shrink to 128 x 96 px
    assert recipe.reasons["heatmap_stride"].startswith("the shorter side of the images is then 96 px")
    assert recipe.reasons["heatmap_sigma"].startswith("for a side of 128 px")


def test_of_a_large_set_more_than_the_first_images_say_what_the_network_sees():
    sizes = np.array([(100, 80)] * 1000 + [(640, 480)] * 1001)
    assert choose_size(Choices(), "none", sizes, np.zeros(0), "cpu") == (None, 640, 480)


def test_single_keypoints_tell_nothing_of_sizes(tmp_path):
    Image.new("L", (960, 720)).save(tmp_path / "0.png")
    entries = [{"image_path": "0.png", "a": [[10, 10]], "b": []}]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    single = read_annotations(tmp_path / "labels.json", tmp_path)
    recipe = choose(single, (960, 720))
    assert (recipe.image_size, recipe.train_crop_size) == ([288, 288], None)
    assert choose(single, (960, 720), image_size=864).train_crop_size is None


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_keypoints_at_one_place_tell_nothing_of_sizes_either(tmp_path, accelerator):
    Image.new("L", (960, 720)).save(tmp_path / "0.png")
    entries = [{"image_path": "0.png", "a": [[10, 10], [10, 10]], "b": [[10, 10]]}]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    recipe = choose(read_annotations(tmp_path / "labels.json", tmp_path), (960, 720), accelerator)
    largest = {"cpu": 288, "gpu": 640}[accelerator]
    assert (recipe.image_size, recipe.train_crop_size) == ([largest, largest], None)


@pytest.mark.parametrize(
    ("distances", "unit", "image_size", "warned"),
    [
        ([2, 4], "pixel", [288, 288], "0.29 px"),  # 4032 px shrink by 14
        ([2, 13.9], "pixel", [288, 288], "0.99 px"),
        ([2, 14.1], "pixel", [288, 288], None),
        ([2, 4], "pixel", None, None),
        ([0.2], "pixel", [288, 288], "0.014 px"),
        ([0.01, 0.02], "pixel", [288, 288], None),  # meant as fractions, which another warning says
        ([0.001, 0.002], "image", [288, 288], "0.72 px"),  # of a diagonal of 360 px
        ([0.001, 0.01], "image", [288, 288], None),
    ],
)
def test_distances_below_a_pixel_of_the_network_are_warned_of(caplog, distances, unit, image_size, warned):
    with caplog.at_level("WARNING"):
        warn_of_fine_distances(distances, unit, np.array([[3024, 4032]] * 3 + [[0, 0]]), image_size)
    assert [warned in record.message for record in caplog.records] == ([True] if warned else [])


def test_distances_are_warned_of_where_the_median_image_shrinks_too_much(caplog):
    warn_of_fine_distances([4], "pixel", np.array([[3024, 4032]] * 3 + [[200, 200]] * 2), [288, 288])
    (record,) = caplog.records
    assert "4: at most 0.29 px of the network's input, for which images of 4032 px shrink to 288 px" in record.message


def test_flat_images_are_larger_by_the_mean_of_how_flat_they_are():
    # sides of 1, 1/4 and 1/4 of one another are 1/2 in the mean, which is 2/3 of 3/4
    assert image_sizes.flatness(np.array([[80, 80], [20, 80], [80, 20]])) == pytest.approx(math.sqrt(3 / 2))
    assert image_sizes.flatness(np.array([[80, 80]])) == 1


def test_a_side_that_is_as_large_as_it_may_be_is_not_said_to_be_too_large(annotations):
    assert choose(annotations, (640, 640), "gpu").reasons["image_size"] == "the longer side of the images is 640 px"


def test_images_of_unknown_size_are_not_warned_of(caplog):
    warn_of_fine_distances([2, 4], "pixel", np.zeros((3, 2), int), [288, 288])
    warn_of_large_parts([512, 512], np.zeros((3, 2), int), None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("crop_size", "sizes", "image_size", "warned"),
    [
        ([512, 512], [(640, 480), (320, 240)], None, False),
        ([512, 512], [(512, 480), (320, 512), (0, 0)], None, True),
        ([480, 640], [(480, 640)], None, False),  # height and width, of an image that stands upright
        ([240, 320], [(640, 480)], [240, 400], True),
        ([239, 320], [(640, 480)], [240, 400], False),
        (None, [(640, 480)], None, False),
    ],
)
def test_parts_that_are_no_smaller_than_any_image_are_warned_of(caplog, crop_size, sizes, image_size, warned):
    warn_of_large_parts(crop_size, np.array(sizes), image_size)
    assert [record.message.split(":")[0] for record in caplog.records] == (
        [f"--train_crop_size {crop_size[0]} {crop_size[1]} has no effect"] if warned else []
    )


@pytest.mark.parametrize(
    ("points", "maxima", "told"),
    [
        ({"a": 1, "b": 2}, None, 'of a: --keypoint_channel_max_keypoints "1 -1" would detect at most one'),
        ({"a": 1, "b": 1}, None, "of any channel: --keypoint_channel_max_keypoints 1 would detect at most one"),
        ({"a": 1, "b": 0}, None, 'of a: --keypoint_channel_max_keypoints "1 -1" would detect at most one'),
        ({"a": 2, "b": 2}, None, None),
        ({"a": 1, "b": 2}, "1 -1", None),
    ],
)
def test_channels_of_single_keypoints_are_told(tmp_path, caplog, points, maxima, told):
    keypoints = {name: [[5, 5]] * count for name, count in points.items()}
    for name in ("0.png", "1.png"):
        Image.new("L", (64, 64)).save(tmp_path / name)
    entries = [{"image_path": "0.png", **keypoints}, {"image_path": "1.png", **keypoints}]
    (tmp_path / "labels.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    data = KeypointsDataModule(
        str(tmp_path / "labels.json"), keypoint_channel_max_keypoints=maxima, augmentation=None, heatmap_sigma=2.0,
        heatmap_stride=1, image_size=None, train_crop_size=None, batch_size=1,
    )  # fmt: skip
    data.setup()
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        caps = decoding_caps(data, None)
    assert caps == {"max_keypoints": 20, "keypoint_channel_max_keypoints": maxima and [1, -1]}
    messages = [message for message in caplog.messages if "would detect at most one" in message]
    assert messages == ([] if told is None else [f"no image holds more than one keypoint {told}"])
