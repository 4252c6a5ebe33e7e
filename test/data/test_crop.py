import numpy as np
import pytest
import torch
from data_sets import write_data_set
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection import heatmaps
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.crop import choose_window, within
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.sampler import Key
from keypoint_detection.errors import InputError

sides = st.integers(1, 60)
LABELS = [{"a": [[30, 20], [31.5, 80.25]], "b": []}, {"a": [], "b": [[70, 60]]}, {"a": [], "b": []}]
COLOURS_AS_THEY_ARE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "grayscale": 0.0}
STILL = {"rotation": 0.0, "horizontal_flip": 0.0, "vertical_flip": 0.0, "scale": 0.0, "translation": 0.0}
TURNED = {"rotation": 30.0, "horizontal_flip": 0.5, "vertical_flip": 0.0}


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 2**32), st.integers(0, 3))
def test_a_window_lies_in_the_image_and_is_as_large_as_it_can_be(size, crop_size, seed, count):
    random = np.random.default_rng(seed)
    keypoints = torch.from_numpy(random.uniform(-20, 80, (2, count + 1, 2)).astype(np.float32))
    keypoints[0, 0] = torch.nan
    window = choose_window(keypoints, size, crop_size, random)
    assert window.size == (min(size[0], crop_size[0]), min(size[1], crop_size[1]))
    pixels = torch.arange(size[0] * size[1]).view(1, *size)
    part = window.take(pixels)
    assert part.shape == (1, *window.size)
    assert part[0, 0, 0] == window.top * size[1] + window.left


def test_three_of_four_windows_hold_a_keypoint_at_any_place_but_near_the_border():
    point, size = torch.tensor([[[150.0, 100.0]]]), (200, 300)
    places = []
    for seed in range(2000):
        window = choose_window(point, size, (20, 40), np.random.default_rng(seed))
        x, y = 150 - window.left, 100 - window.top
        if 0 <= x <= 40 and 0 <= y <= 20:
            places.append((x, y))
    # Those that lie anywhere hold it by chance: 40 of 261 columns and 20 of 181 rows.
    assert len(places) / 2000 == pytest.approx(0.75 + 0.25 * 40 / 261 * 20 / 181, abs=0.03)
    x, y = np.array(places).T
    central = (x >= 4) & (x <= 36) & (y >= 2) & (y <= 18)
    assert central.mean() > 0.99
    for values, low, high in ((x[central], 4, 36), (y[central], 2, 18)):
        counts = np.histogram(values, bins=4, range=(low, high))[0]
        assert counts.min() > 0.2 * counts.sum()


def test_each_keypoint_of_an_image_is_as_often_the_one_that_a_window_holds():
    seen = [(0.0, 0.0), (300.0, 100.0), (600.0, 200.0)]  # in the corners it is held too
    elsewhere = [(-30.0, 100.0), (150.0, -30.0), (150.0, 230.0), (630.0, 100.0), (torch.nan, torch.nan)]
    points = torch.tensor([seen, elsewhere[:3], elsewhere[2:]])
    windows = [choose_window(points, (200, 600), (40, 40), np.random.default_rng(seed)) for seed in range(2000)]
    for x, y in seen:
        held = [0 <= x - window.left <= 40 and 0 <= y - window.top <= 40 for window in windows]
        # By chance windows hold one in the middle in 40 of 561 by 40 of 161 places, and one in a corner hardly ever.
        assert np.mean(held) == pytest.approx(0.25 + 0.25 * (x == 300) * 40 / 561 * 40 / 161, abs=0.03)


def test_windows_of_an_image_without_keypoints_lie_anywhere():
    nothing = torch.full((2, 3, 2), torch.nan)
    windows = [choose_window(nothing, (60, 100), (20, 30), np.random.default_rng(seed)) for seed in range(2000)]
    for corners, room in (([window.left for window in windows], 70), ([window.top for window in windows], 40)):
        counts = np.histogram(corners, bins=4, range=(0, room))[0]
        assert counts.min() > 0.2 * len(windows)


def test_keypoints_outside_of_a_size_are_missing():
    keypoints = torch.tensor([[[0.0, 0.0], [8.0, 4.0], [8.1, 1.0], [1.0, -0.1], [torch.nan, torch.nan]]])
    assert within(keypoints, (4, 8)).isnan().all(-1).tolist() == [[False, False, True, True, True]]


@pytest.fixture
def annotations(tmp_path):
    write_data_set(tmp_path, [(96, 120), (120, 96), (40, 20)], LABELS)
    return read_annotations(tmp_path / "dataset.json", tmp_path)


def data_set(annotations, **more):
    fixed = {"heatmap_sigma": 2, "heatmap_stride": 1, "seed": 3, "empty_channels": "absent", "corrupt_images": "raise"}
    return KeypointsDataset(annotations, **(fixed | more))


@pytest.mark.parametrize(("changed", "geometry"), [(True, TURNED), (True, STILL), (False, TURNED)])
@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_a_sample_is_a_part_of_what_it_would_be_whole(annotations, changed, geometry, scale):
    augmentation = Augmentation(**geometry, **COLOURS_AS_THEY_ARE)
    whole = data_set(annotations, augmentation=augmentation, image_size=(256, 224))
    parts = data_set(annotations, augmentation=augmentation, image_size=(256, 224), crop_size="160 170")
    seen = 0
    for key in [Key(index, epoch, scale, changed) for index in range(3) for epoch in range(6)]:
        image, part = whole[key], parts[key]
        height, width = part.images.shape[1:]
        assert (height, width) == (min(image.images.shape[1], 160 * scale), min(image.images.shape[2], 170 * scale))
        shift = torch.linalg.inv(image.transforms) @ part.transforms
        left, top = shift[0, 2].round().int(), shift[1, 2].round().int()
        expected = torch.eye(3, dtype=torch.float64)
        expected[0, 2], expected[1, 2] = left, top
        torch.testing.assert_close(shift, expected, atol=1e-6, rtol=0)
        pixels = image.images[:, top : top + height, left : left + width]
        # How far the image is shrunk before it is sampled is measured at the middle of what is sampled.
        torch.testing.assert_close(part.images, pixels, atol=2e-3, rtol=0)
        moved = within(image.keypoints - torch.tensor([left, top]), (height, width))
        torch.testing.assert_close(part.keypoints, moved, atol=1e-3, rtol=0, equal_nan=True)
        seen += int((~part.keypoints.isnan()).any(-1).sum())
        found = heatmaps.transform_points(part.keypoints, part.transforms)
        for points, labelled in zip(found, LABELS[key.index].values(), strict=True):
            for point in points[~points.isnan().any(-1)]:
                assert np.linalg.norm(point.numpy() - labelled, axis=1).min() < 0.01
    assert seen > 12


@pytest.mark.parametrize("geometry", [TURNED, STILL, None])
def test_most_samples_hold_a_keypoint_where_it_lies_once_the_image_is_changed(tmp_path, geometry):
    write_data_set(tmp_path, [(400, 300)], [{"a": [[330, 60]]}])
    augmentation = None if geometry is None else Augmentation(**geometry, **COLOURS_AS_THEY_ARE)
    parts = data_set(read_annotations(tmp_path / "dataset.json", tmp_path), augmentation=augmentation, crop_size=40)
    # The quarter that lie anywhere hold it in one of fifty places; turned by 30 degrees it may leave the image.
    held = [not parts[Key(0, epoch)].keypoints.isnan().any() for epoch in range(100)]
    assert np.mean(held) > 0.55


def test_parts_are_a_function_of_seed_epoch_and_index(tmp_path):
    write_data_set(tmp_path, [(120, 96)] * 8, [{"a": [], "b": []}] * 7 + [LABELS[0]], name="alike.json")
    alike = read_annotations(tmp_path / "alike.json", tmp_path)
    parts = data_set(alike, crop_size=40)

    def places(samples):
        return {sample.transforms.numpy().tobytes() for sample in samples}

    assert torch.equal(parts[Key(0, 4)].images, parts[Key(0, 4)].images)
    assert torch.equal(parts[Key(-8, 4)].images, parts[Key(0, 4)].images)
    assert len(places(parts[Key(0, epoch)] for epoch in range(8))) > 4
    assert len(places(parts[Key(index, 4)] for index in range(7))) > 4
    assert len(places(data_set(alike, crop_size=40, seed=seed)[Key(0, 4)] for seed in range(8))) > 4


def test_where_a_part_lies_says_nothing_of_how_the_image_was_moved(tmp_path):
    write_data_set(tmp_path, [(40, 40)], [{"a": []}])
    moved = Augmentation(**STILL | {"translation": 0.1}, **COLOURS_AS_THEY_ARE)
    parts = data_set(read_annotations(tmp_path / "dataset.json", tmp_path), augmentation=moved, crop_size=32)
    corners = np.array([parts[Key(0, epoch)].transforms[:2, 2].numpy() for epoch in range(50)])
    # The part begins 0 to 8 pixels from the image, and that -4 to 4: together they are anywhere from -4 to 12.
    assert (np.ptp(corners, axis=0) > 10).all()


def test_only_training_images_are_shown_in_parts(annotations, tmp_path):
    module = KeypointsDataModule(
        tmp_path / "dataset.json",
        json_validation_dataset_path=tmp_path / "dataset.json",
        json_test_dataset_path=tmp_path / "dataset.json",
        heatmap_sigma=2,
        heatmap_stride=1,
        batch_size=1,
        train_crop_size=50,
    )
    module.setup()
    shapes = [tuple(module.dataset(stage)[0].images.shape) for stage in ("train", "validation", "test")]
    assert shapes == [(3, 50, 50), (3, 120, 96), (3, 120, 96)]


def test_a_wrong_size_of_parts_is_named(annotations):
    with pytest.raises(InputError, match="crop_size: expected one or two positive whole numbers"):
        data_set(annotations, crop_size="a b c")
