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


def test_keypoints_outside_of_a_size_are_missing():
    keypoints = torch.tensor([[[0.0, 0.0], [8.0, 4.0], [8.1, 1.0], [1.0, -0.1], [torch.nan, torch.nan]]])
    assert within(keypoints, (4, 8)).isnan().all(-1).tolist() == [[False, False, True, True, True]]


@pytest.fixture
def annotations(tmp_path):
    write_data_set(tmp_path, [(96, 120), (120, 96), (40, 20)], LABELS)
    return read_annotations(tmp_path / "dataset.json", tmp_path)


def data_set(annotations, **more):
    return KeypointsDataset(
        annotations, heatmap_sigma=2, heatmap_stride=1, seed=3, empty_channels="absent", corrupt_images="raise", **more
    )


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_a_sample_is_a_part_of_what_it_would_be_whole(annotations, changed, scale):
    augmentation = Augmentation(rotation=30, horizontal_flip=0.5, vertical_flip=0.0, **COLOURS_AS_THEY_ARE)
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


def test_parts_are_the_same_whenever_they_are_read_and_others_in_each_epoch(annotations):
    parts = data_set(annotations, crop_size=40)
    assert torch.equal(parts[Key(0, 4)].images, parts[Key(0, 4)].images)
    assert len({parts[Key(0, epoch)].transforms.numpy().tobytes() for epoch in range(8)}) > 4


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
